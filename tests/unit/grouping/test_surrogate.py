"""Surrogate grouping: planted clusters, the rules of section 3.1 against plain loops, edges, steering."""

import math

import numpy as np
import pytest
import torch
from refusals import refuses_each
from sklearn.metrics import adjusted_rand_score

from pml_posets.grouping._groups import Groups, Space, grow
from pml_posets.grouping._merging import disjoint, merge, unique_groups
from pml_posets.grouping._radii import clear_ends, clear_radii, quantile_distances
from pml_posets.grouping.surrogate import SurrogateGrouping
from pml_posets.neighbors.nearest import Neighbors, search

PAPER = {"top_fraction": 0.05, "contrast": np.inf, "max_size": 16}


def planted(num_clusters, size, noise=0, num_dims=16, spread=0.1, seed=0):
    """Features and the cluster of each, -1 for noise."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_clusters, num_dims))
    truth = np.concatenate([np.repeat(np.arange(num_clusters), size), np.full(noise, -1)])
    features = rng.normal(size=(truth.size, num_dims))
    features[truth >= 0] *= spread
    features[truth >= 0] += centres[truth[truth >= 0]]
    order = rng.permutation(truth.size)
    return features[order].astype(np.float32), truth[order]


def groups_of(rows, flips=None):
    """Groups from lists of members."""
    width = max(map(len, rows))
    members = np.array([row + [-1] * (width - len(row)) for row in rows])
    turned = [[False] * len(row) for row in rows] if flips is None else flips
    return Groups(members, np.array([row + [False] * (width - len(row)) for row in turned], bool))


def lists_of(groups):
    return [row[row >= 0].tolist() for row in groups.members]


def sets_of(rows):
    """Lists of members without their order."""
    return sorted(map(sorted, rows))


def space_of(features, mirrored=None, scale=1.0):
    return Space.of(np.asarray(features, np.float32), mirrored, scale)


def check_invariants(grouping, features, sources=None):
    labels = grouping.labels_
    assert labels.shape == (len(features),)
    assert labels.dtype == np.int64
    assert grouping.flips_.dtype == np.bool_
    sizes = np.bincount(labels[labels >= 0], minlength=grouping.num_classes_)
    assert len(sizes) == grouping.num_classes_ == len(grouping.compactness_)
    if sizes.size:
        assert sizes.min() >= grouping.min_size
        assert sizes.max() <= grouping.max_size
        first = [int(np.flatnonzero(labels == c)[0]) for c in range(len(sizes))]
        assert first == sorted(first)
    if sources is not None:
        pairs = [(c, s) for c, s in zip(labels, sources, strict=True) if c >= 0]
        assert len(set(pairs)) == len(pairs)
    assert not grouping.flips_[labels < 0].any()


@pytest.mark.parametrize(
    ("clusters", "size", "noise", "max_size"),
    [(60, 25, 400, 32), (300, 5, 1000, 32), (40, 31, 0, 32), (20, 50, 0, 64)],
)
def test_clear_clusters_come_out_whole_and_without_noise(clusters, size, noise, max_size):
    features, truth = planted(clusters, size, noise, num_dims=32, spread=0.3)
    grouping = SurrogateGrouping(max_size=max_size)
    labels = grouping.fit_predict(features)
    check_invariants(grouping, features)
    assert labels is grouping.labels_
    assert labels.max() + 1 == clusters
    assert (labels[truth < 0] >= 0).sum() <= 1
    assert adjusted_rand_score(truth[truth >= 0], labels[truth >= 0]) >= 0.99
    if noise:
        paper = SurrogateGrouping(**PAPER).fit_predict(features)
        assert (paper[truth < 0] >= 0).sum() > noise / 4


def test_radii_end_at_the_widest_gap_or_near_the_median():
    """Against plain loops; where there is no gap and no radius sticks out nothing changes."""
    features, _ = planted(9, 7, 40, num_dims=5, spread=0.2)
    sources = np.arange(len(features)) % 40
    neighbors = search(features, 20, sources=sources)
    given = neighbors.distances[:, 11]
    expected = np.array(given)
    clear = np.zeros(len(given), bool)
    for i, row in enumerate(neighbors.distances):
        ratios = {j: row[j + 1] / row[j] for j in range(2, 19) if np.isfinite(row[j + 1])}
        last = max(ratios, key=ratios.get)
        if ratios[last] >= 1.3:
            clear[i], expected[i] = True, row[last]
    assert 20 < clear.sum() < 100
    limit = 1.3 * np.median(expected)
    expected = np.where(clear, expected, np.minimum(expected, limit))
    ends = clear_ends(neighbors, 4, 1.3)
    np.testing.assert_array_equal(np.isfinite(ends), clear)
    np.testing.assert_allclose(clear_radii(given, ends, 1.3), expected, rtol=1e-6)
    assert np.isinf(clear_ends(neighbors, 4, np.inf)).all()
    np.testing.assert_array_equal(clear_radii(given, ends, np.inf), given)
    smooth = np.random.default_rng(0).normal(size=(400, 64)).astype(np.float32)
    even = SurrogateGrouping(contrast=np.inf).fit(smooth)
    np.testing.assert_array_equal(SurrogateGrouping().fit(smooth).radii_, even.radii_)


@pytest.mark.parametrize("max_widening", [2.0, np.inf])
def test_widening_keeps_strangers_out(max_widening):
    features, truth = planted(100, 5, 400, spread=0.05)
    labels = SurrogateGrouping(max_widening=max_widening, **PAPER).fit_predict(features)
    classes = [truth[labels == c] for c in range(labels.max() + 1)]
    strangers = sum((inside < 0).any() and (inside >= 0).any() for inside in classes)
    assert strangers == 0 if max_widening == 2.0 else strangers > 20


@pytest.mark.parametrize("seed", range(2))
def test_every_pair_of_a_grown_group_is_mutually_similar(seed):
    """Section 3.1's rule, checked pair by pair; one sample a source; growth by the farthest member."""
    rng = np.random.default_rng(seed)
    features, sources = rng.normal(size=(80, 4)).astype(np.float32), rng.integers(0, 30, 80)
    grouping = SurrogateGrouping(max_size=7, top_fraction=0.2, max_neighbors=20, max_widening=np.inf)
    radii = grouping.fit(features, sources=sources).radii_
    found = grouping.neighbors_
    grown = lists_of(grow(space_of(features), found, radii, sources, 3, 7, np.inf))
    distance = np.linalg.norm(features[:, None] - features[None], axis=2)
    scaled = distance / np.minimum(radii[:, None], radii[None])
    for i, group in enumerate(grown):
        for size in range(1, 8):
            inside = group[:size]
            seen = {sources[m] for m in inside}
            fitting = {j: scaled[j, inside].max() for j in found.indices[i] if sources[j] not in seen}
            nearest = min(fitting.values(), default=np.inf)
            if len(group) == size:
                assert size == 7 or nearest > 1 - 1e-3
                break
            assert fitting[group[size]] == pytest.approx(nearest, rel=1e-3)
            assert nearest <= 1 + 1e-3


@pytest.mark.parametrize("mirror", [False, True])
def test_growth_knows_the_means_of_its_pairs(mirror):
    rng = np.random.default_rng(3)
    features, mirrored = rng.normal(size=(2, 120, 5)).astype(np.float32)
    mirrored = mirrored if mirror else None
    sources = rng.integers(0, 60, 120)
    grouping = SurrogateGrouping(scale=0.6).fit(features, sources=sources, mirrored=mirrored)
    space = space_of(features, mirrored, 0.6)
    grown = grow(space, grouping.neighbors_, grouping.radii_, sources, 3, 9, np.inf)
    for size in (1, 2, 5, 9):
        known = grown.first(size).pick(np.arange(0, 120, 2))
        expected = Groups(known.members, known.flips).means(space)
        np.testing.assert_allclose(known.means(space), expected, rtol=1e-4)


def test_radii_hold_the_top_fraction_of_other_sources():
    rng = np.random.default_rng(0)
    features, mirrored = rng.normal(size=(2, 300, 5)).astype(np.float32)
    sources = rng.integers(0, 40, 300)
    distance = np.linalg.norm(features[:, None] - features[None], axis=2)
    distance = np.minimum(distance, np.linalg.norm(mirrored[:, None] - features[None], axis=2))
    expected = []
    for i in range(300):
        others = np.sort(distance[i][sources != sources[i]])
        expected.append(others[math.ceil(0.15 * others.size) - 1])
    for k in (8, 60):  # too short a list for the 15 %, and one long enough
        grouping = SurrogateGrouping(top_fraction=0.15, max_neighbors=k, contrast=np.inf).fit(
            features, sources=sources, mirrored=mirrored
        )
        np.testing.assert_allclose(grouping.radii_, expected, rtol=1e-4)
    few = SurrogateGrouping(top_fraction=0.001, min_neighbors=5, contrast=np.inf).fit(features)
    np.testing.assert_allclose(few.radii_, search(features, 5).distances[:, 4])


def test_radii_see_as_many_sources_as_neighbors_are_asked_for():
    rng = np.random.default_rng(0)
    features, sources = rng.normal(size=(200, 4)).astype(np.float32), rng.integers(0, 25, 200)
    grouping = SurrogateGrouping(min_neighbors=9, max_neighbors=20, contrast=np.inf)
    found = grouping.fit(features, sources=sources).neighbors_
    for row, index, radius in zip(found.distances, found.indices, grouping.radii_, strict=True):
        seen = [len(set(sources[index[: n + 1]].tolist())) for n in range(20)]
        assert radius == row[seen.index(9) if 9 in seen else -1]


def test_radii_from_a_sample_are_close_to_those_from_all():
    features = np.random.default_rng(1).normal(size=(3000, 8)).astype(np.float32)
    rows = np.arange(0, 3000, 100)
    exact = np.quantile(np.linalg.norm(features[rows, None] - features[None], axis=2), 0.05, axis=1)
    chosen = np.sort(np.random.default_rng(0).choice(3000, 1024, replace=False))
    assert np.abs(quantile_distances(space_of(features), rows, chosen, 0.05, None) / exact - 1).mean() < 0.03
    grouping = SurrogateGrouping(max_neighbors=16, random_state=3, **PAPER).fit(features)
    assert np.abs(grouping.radii_[rows] / exact - 1).mean() < 0.03


def test_at_most_one_sample_of_a_source():
    features, truth = planted(12, 10, spread=0.2)
    sources = np.random.default_rng(0).permutation(np.arange(120) // 3)
    names = np.array([f"video {s}" for s in sources])
    with_rule = SurrogateGrouping().fit(features, sources=names)
    check_invariants(with_rule, features, names)
    assert SurrogateGrouping().fit_predict(features, sources=sources).tolist() == with_rule.labels_.tolist()
    without = SurrogateGrouping(one_per_source=False).fit_predict(features, sources=names)
    assert without.tolist() == SurrogateGrouping().fit_predict(features).tolist()
    assert without.tolist() != with_rule.labels_.tolist()
    assert adjusted_rand_score(truth, without) == 1
    alone = SurrogateGrouping().fit(features, sources=np.zeros(120, int))
    assert alone.num_classes_ == 0
    check_invariants(alone, features)


def mirrored_case(seed=0):
    """Clusters of which about a third stands mirrored; mirroring reverses a row and is exact."""
    features, truth = planted(15, 8, spread=0.05, seed=seed)
    turned = np.random.default_rng(seed + 1).random(len(truth)) < 0.3
    features[turned] = features[turned, ::-1]
    return features, np.ascontiguousarray(features[:, ::-1]), truth, turned


def test_a_mirrored_sample_joins_mirrored():
    features, mirrored, truth, turned = mirrored_case()
    grouping = SurrogateGrouping().fit(features, mirrored=mirrored)
    check_invariants(grouping, features)
    assert adjusted_rand_score(truth, grouping.labels_) == 1
    for c in range(15):
        inside = grouping.labels_ == c
        same = (grouping.flips_ == turned)[inside]
        assert same.all() or not same.any()
        assert 2 * grouping.flips_[inside].sum() <= inside.sum()
    plain = SurrogateGrouping().fit_predict(features)
    assert adjusted_rand_score(truth, plain) < 0.8


def test_precomputed_neighbors_give_the_same():
    features, mirrored, _, _ = mirrored_case()
    sources = np.arange(120) // 2
    once = SurrogateGrouping().fit(features, sources=sources, mirrored=mirrored)
    found = search(features, 32, mirrored=mirrored, sources=sources)
    again = SurrogateGrouping().fit(features, sources=sources, mirrored=mirrored, neighbors=found)
    assert again.labels_.tolist() == once.labels_.tolist()
    assert again.flips_.tolist() == once.flips_.tolist()
    assert again.neighbors_ is found


def test_the_seed_alone_decides_and_backends_agree():
    features, _ = planted(40, 7, 300, spread=0.3)
    first = SurrogateGrouping(random_state=5, backend="faiss").fit_predict(features)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(9)
    again = SurrogateGrouping(random_state=5).fit_predict(torch.from_numpy(features).double())
    loops = SurrogateGrouping(random_state=5, backend="torch").fit_predict(features)
    assert first.tolist() == again.tolist() == loops.tolist()
    nearly = SurrogateGrouping(method="approximate").fit_predict(features)
    assert adjusted_rand_score(first, nearly) > 0.9


def test_permuting_samples_permutes_the_classes():
    features, _ = planted(40, 7, 100, spread=0.2)
    order = np.random.default_rng(3).permutation(len(features))
    plain = SurrogateGrouping().fit_predict(features)[order]
    moved = SurrogateGrouping().fit_predict(features[order])
    assert adjusted_rand_score(plain, moved) == pytest.approx(1)
    assert ((plain < 0) == (moved < 0)).all()


def test_the_number_of_classes_is_steered_down():
    features, truth = planted(40, 8, spread=0.1)
    scale = np.linspace(1, 6, 40)[truth][:, None]  # cluster 0 is the most compact
    centres = np.stack([features[truth == c].mean(0) for c in range(40)])[truth]
    features = centres + (features - centres) * scale
    grouping = SurrogateGrouping(num_classes=12).fit(features)
    check_invariants(grouping, features)
    assert grouping.num_classes_ == 12
    assert set(truth[grouping.labels_ >= 0]) == set(range(12))


def walk(count):
    """Features without any clusters."""
    return np.cumsum(np.random.default_rng(0).normal(size=(count, 8)), axis=0).astype(np.float32)


def test_the_number_of_classes_is_steered_up():
    free = SurrogateGrouping(**PAPER).fit(walk(600))
    more = SurrogateGrouping(num_classes=round(1.5 * free.num_classes_), **PAPER).fit(walk(600))
    check_invariants(more, walk(600))
    assert more.num_classes_ == round(1.5 * free.num_classes_)
    assert more.max_size_ < free.max_size_ == 16
    most = SurrogateGrouping(num_classes=10_000, **PAPER).fit(walk(600))
    assert more.num_classes_ <= most.num_classes_ <= 200


@pytest.mark.parametrize(
    "options", [{"mean_size": 4.0}, {"num_classes": 10_000}, {"num_classes": 30, **PAPER}]
)
def test_sizes_that_cut_nothing_off_are_not_tried_twice(monkeypatch, options):
    features, calls = walk(600), []
    make = SurrogateGrouping._classes

    def counted(self, grown, size, space, codes):
        calls.append(size)
        classes, largest = make(self, grown, size, space, codes)
        assert largest >= grown.members.shape[1]
        return classes, 10_000 if everything else largest

    monkeypatch.setattr(SurrogateGrouping, "_classes", counted)
    everything = True
    expected = SurrogateGrouping(**options).fit(features)
    tried = len(calls)
    everything = False
    found = SurrogateGrouping(**options).fit(features)
    assert np.array_equal(found.labels_, expected.labels_)
    assert found.max_size_ == expected.max_size_
    assert len(calls) - tried <= tried
    if options == {"num_classes": 10_000}:
        assert len(calls) - tried < tried


@pytest.mark.parametrize("mean_size", [4.0, 5.5, 8])
def test_the_mean_size_is_steered(mean_size):
    grouping = SurrogateGrouping(mean_size=mean_size).fit(walk(600))
    check_invariants(grouping, walk(600))
    assert np.bincount(grouping.labels_[grouping.labels_ >= 0]).mean() == pytest.approx(mean_size, abs=0.05)
    both = SurrogateGrouping(mean_size=mean_size, num_classes=25).fit(walk(600))
    assert both.num_classes_ == 25
    assert np.bincount(both.labels_[both.labels_ >= 0]).mean() <= mean_size + 0.05


def test_trimming_takes_the_least_similar_members():
    features = np.float32([[0], [0.1], [0.2], [0.9], [5], [5.1], [5.2], [5.3]])
    grouping = SurrogateGrouping(mean_size=3.5, max_size=5)
    trimmed = grouping._trim(groups_of([[0, 1, 2, 3], [4, 5, 6, 7]]), space_of(features))
    assert lists_of(trimmed) == [[0, 1, 2], [4, 5, 6, 7]]


@pytest.mark.parametrize("num_samples", [2, 3, 5, 17])
def test_a_handful_of_samples(num_samples):
    features = np.random.default_rng(0).normal(size=(num_samples, 3)).astype(np.float32)
    grouping = SurrogateGrouping(min_size=2, max_widening=np.inf).fit(features)
    check_invariants(grouping, features)
    assert grouping.num_classes_ >= 1
    if num_samples == 2:
        assert grouping.labels_.tolist() == [0, 0]


def test_equal_samples():
    grouping = SurrogateGrouping().fit(np.repeat(np.eye(4, dtype=np.float32), 6, axis=0))
    assert grouping.labels_.tolist() == np.repeat(np.arange(4), 6).tolist()
    np.testing.assert_allclose(grouping.compactness_, 1)
    constant = SurrogateGrouping(max_size=5).fit(np.ones((50, 3)))
    check_invariants(constant, np.ones((50, 3)))
    assert constant.num_classes_ >= 1


def test_compactness_is_the_mean_similarity_of_pairs():
    features, _ = planted(10, 6, 40, spread=0.3)
    grouping = SurrogateGrouping(scale=0.7).fit(features)
    for c, found in enumerate(grouping.compactness_):
        rows = features[grouping.labels_ == c].astype(np.float64)
        pairs = [np.linalg.norm(a - b) for i, a in enumerate(rows) for b in rows[:i]]
        assert found == pytest.approx(np.mean(np.exp(-np.array(pairs) / 0.7)), rel=1e-4)


def merge_all(groups, space, **options):
    """The groups after merging, each grown from its first member, and the size of the largest in full."""
    owner = np.full(len(space.table), -1)
    owner[groups.members[:, 0]] = np.arange(len(groups.members))
    return merge(groups, owner, space, **{"overlap": 0.5, "widening": np.inf, "max_size": 16, **options})


def merged(rows, features, **options):
    return lists_of(merge_all(groups_of(rows), space_of(features), **options)[0])


def test_highly_overlapping_groups_merge():
    features = np.float32([[0], [0.1], [0.2], [0.3], [0.4], [3], [3.1]])
    rows = [[0, 1, 2], [3, 2, 0], [4, 3], [5, 6, 0]]  # {4, 3} shares half of itself, {5, 6, 0} a third
    assert sets_of(merged(rows, features)) == [[0, 1, 2, 3, 4], [0, 5, 6]]
    assert sets_of(merged(rows, features, overlap=0.6)) == [[0, 1, 2, 3], [0, 5, 6], [3, 4]]
    assert sets_of(merged(rows, features, overlap=0.7)) == sets_of(rows)


def merged_plainly(rows, near, far, widening, max_size):
    """Merging as `merge` describes it, by plain loops over sets; similarities and distances (N, N)."""
    groups, refused = dict(enumerate(map(set, rows))), set()
    grown_into = {row[0]: number for number, row in enumerate(rows)}
    value = {}  # of each group: mean similarity, mean distance

    def means(group):
        pairs = [(i, j) for i in group for j in group if i < j]
        return np.mean([near[pair] for pair in pairs]), np.mean([far[pair] for pair in pairs])

    while True:
        value |= {number: means(group) for number, group in groups.items()}
        best = {}
        for a, b in {(a, grown_into.get(i, a)) for a, group in groups.items() for i in group}:
            share = len(groups[a] & groups[b]) / min(len(groups[a]), len(groups[b]))
            if a != b and share >= 0.5 and frozenset((a, b)) not in refused:
                leader, child = sorted((a, b), key=lambda number: (-value[number][0], number))
                best[child] = max(best.get(child, (0, 0, 0)), (share, value[leader][0], -leader))
        pairs = {child: -last for child, (_, _, last) in best.items() if -last not in best}
        if not pairs:
            return list(map(sorted, groups.values()))
        for child, leader in list(pairs.items()):
            united, both = means(groups[leader] | groups[child]), (value[leader], value[child])
            if united[0] < 0.5 * max(x[0] for x in both) or united[1] > widening * min(x[1] for x in both):
                refused.add(frozenset((child, leader)))
                del pairs[child]
        for leader in set(pairs.values()):
            children = [child for child, its in pairs.items() if its == leader]
            union = groups[leader].union(*(groups[child] for child in children))
            score = {i: np.mean([near[i, j] for j in groups[leader] if j != i]) for i in union}
            groups[leader] = set(sorted(union, key=lambda i: -score[i])[:max_size])
            for child in children:
                del groups[child]
            grown_into |= {i: leader for i, number in grown_into.items() if number in children}


@pytest.mark.parametrize(
    ("step", "widening", "max_size"), [(1, np.inf, 16), (1, 1.3, 16), (1, 1.6, 5), (2, np.inf, 16)]
)
def test_merging_by_plain_loops(step, widening, max_size):
    features = step * walk(150)
    far = np.linalg.norm(features[:, None].astype(np.float64) - features[None], axis=2)
    rows = np.argsort(far, axis=1)[:, :4].tolist()  # each sample and its three nearest ...
    rows = list({frozenset(row): row for row in reversed(rows)}.values())  # ... where that set is new
    found = merged(rows, features, widening=widening, max_size=max_size)
    assert len(found) < 150
    assert sets_of(found) == sorted(merged_plainly(rows, np.exp(-far), far, widening, max_size))


def test_a_union_keeps_the_most_similar_and_one_a_source():
    features = np.float32([[0], [0.1], [0.2], [0.5], [0.6]])
    rows = [[0, 1, 2], [1, 2, 3, 4]]
    (whole,) = merged(rows, features)
    assert set(whole[:3]) == {0, 1, 2}
    cut, largest = merge_all(groups_of(rows), space_of(features), max_size=4)
    assert lists_of(cut) == [whole[:4]]
    assert largest == len(whole)
    assert 4 not in whole[:4]
    (one_each,) = merged(rows, features, codes=np.array([0, 1, 2, 2, 3]))
    assert sorted(one_each) == [0, 1, 2, 4]


def test_merging_turns_a_group_over():
    features = np.float32([[0], [0.1], [0.2], [0.3]])
    groups = groups_of([[0, 1, 2], [3, 0, 1]], flips=[[0, 0, 1], [0, 1, 1]])
    result, _ = merge_all(groups, space_of(features, features.copy()))
    flips = dict(zip(result.members[0].tolist(), result.flips[0].tolist(), strict=True))
    assert flips == {0: False, 1: False, 2: True, 3: True}
    assert result.upright().flips.sum() <= 2


def test_equal_groups_count_once():
    rows = [[2, 0], [1, 3], [0, 2], [3, 1], [0, 1]]
    groups, owner = unique_groups(groups_of(rows), np.array([2, 1, 0, 3, 4]))
    assert lists_of(groups) == [[2, 0], [1, 3], [0, 1]]
    assert owner.tolist() == [0, 1, 0, 1, 2]


def test_each_sample_takes_its_best_group_and_small_ones_dissolve():
    groups = groups_of([[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7]])
    score = np.array([[0.9, 0.9, 0.5], [0.8, 0.8, 0.2], [0.6, 0.6, 0.6], [0.1, 0.9, 0]])
    assert lists_of(disjoint(groups, score, 1)) == [[0, 1], [2, 3], [4, 5, 6], [7]]
    # Below 3: the single goes first, then of the pairs the less similar, which gives 2 back to the first.
    assert lists_of(disjoint(groups, score, 3)) == [[0, 1, 2], [4, 5, 6]]
    assert lists_of(disjoint(groups, score, 4)) == []


test_bad_options_say_what_is_wrong = refuses_each(
    lambda options: SurrogateGrouping(**options).fit(np.eye(10)),
    *(({name: 0}, f"{name} must be at least 1") for name in ("num_classes", "min_neighbors")),
    ({"min_size": 1}, "min_size must be at least 2"),
    ({"max_size": 2}, "max_size must be at least 3, got 2"),
    ({"mean_size": 2.5}, "mean_size must lie between min_size=3 and max_size=32"),
    ({"mean_size": 40}, "mean_size must lie between"),
    ({"top_fraction": 0.0}, r"top_fraction must be in \(0, 1\]"),
    ({"top_fraction": 5}, "top_fraction must be in"),
    ({"contrast": 0.9}, "contrast must be at least 1"),
    ({"merge_overlap": 0}, "merge_overlap must be in"),
    *(({"max_widening": number}, "max_widening must be at least 1") for number in (0.5, np.nan)),
    ({"max_neighbors": 1}, "max_neighbors must be at least 2"),
    ({"scale": 0.0}, "scale must be above 0"),
    ({"random_state": -1}, "random_state must be at least 0"),
    ({"backend": "cuda"}, "backend must be one of"),
    ({"method": "fast"}, "method must be one of"),
    error=ValueError,
)


def neighbors_of(indices, flips=None):
    indices = np.asarray(indices)
    return Neighbors(indices, np.ones(indices.shape, np.float32), flips)


test_bad_input_says_what_is_wrong = refuses_each(
    lambda given: SurrogateGrouping().fit_predict(**{"features": np.eye(9), **given}),
    ({"features": np.eye(2)}, ValueError, "2 samples .n_samples=2., fewer than a class of min_size=3"),
    ({"features": np.full((9, 2), np.inf)}, ValueError, "features must be finite"),
    ({"features": np.zeros(9)}, ValueError, r"features must have shape \(N, D\)"),
    ({"features": np.zeros((9, 2), complex)}, TypeError, "features must hold real numbers"),
    ({"sources": [1, 2]}, ValueError, r"sources must have shape \(9,\)"),
    ({"mirrored": np.eye(8)}, ValueError, r"mirrored must have the shape \(9, 9\)"),
    ({"neighbors": neighbors_of(np.zeros((4, 2), int))}, ValueError, "a row for each of the 9 samples"),
    ({"neighbors": neighbors_of(np.full((9, 2), 9))}, ValueError, r"indices in -1\.\.8"),
    ({"neighbors": neighbors_of(np.tile(np.arange(9)[:, None], 2))}, ValueError, "its own neighbor"),
    ({"neighbors": search(np.eye(9), 3), "mirrored": np.eye(9)}, ValueError, "do not match"),
    ({"neighbors": search(np.eye(9), 3, mirrored=np.eye(9))}, ValueError, "do not match"),
)


def test_ten_thousand_samples_take_seconds():
    """Growing, merging and labelling must stay vectorised: a loop over samples would take minutes."""
    features, truth = planted(1000, 8, 2000)
    labels = SurrogateGrouping(max_neighbors=24).fit_predict(features, neighbors=search(features, 24))
    assert adjusted_rand_score(truth[truth >= 0], labels[truth >= 0]) > 0.97
