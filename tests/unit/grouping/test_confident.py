"""ConfidentGrouping against planted pairs, a reference in nested loops, and the sampler."""

import numpy as np
import pytest
from refusals import refuses_each

from pml_posets import PseudoLabelSampler
from pml_posets._clips import Clips
from pml_posets.grouping.confident import ConfidentGrouping, Links


def planted(num_samples=60, num_pairs=6, dim=16, noise=0.1, seed=0):
    """Random rows of which the last few are noisy copies of the first."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_samples, dim))
    rows[-num_pairs:] = rows[:num_pairs] + noise * rng.normal(size=(num_pairs, dim))
    return rows.astype(np.float32)


def clips_of(num_clips=6, length=12, dim=24, seed=0):
    """Clips of smooth postures, one source each; clips 0 and 1 show one movement, seen on two backgrounds."""
    rng = np.random.default_rng(seed)
    moves = rng.normal(size=(num_clips, 3, dim))
    moves[1] = moves[0]
    phase = np.linspace(0, 2, length)[:, None]
    waves = np.stack([np.sin(phase), np.cos(phase), np.sin(2 * phase)])  # (3, length, 1)
    rows = np.concatenate([(waves * move[:, None]).sum(0) for move in moves])
    rows += 0.3 * rng.normal(size=rows.shape)
    sources = np.repeat(np.arange(num_clips), length)
    times = np.tile(np.arange(length), num_clips)
    return rows.astype(np.float32), sources, times


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def reference(rows, sources, mirrored, times, coverage, window, path, follow, linkage, max_size, mutual):
    """The class's seven steps, a pair at a time; every sample is a candidate, steps in time are of 1."""
    n = len(rows)
    place = {} if times is None else {key: i for i, key in enumerate(zip(sources, times, strict=True))}

    def step(i, d):
        """Sample d steps later, and whether there is one."""
        if not place:
            return i, False
        sign = 1 if d > 0 else -1
        for _ in range(abs(d)):
            if (sources[i], times[i] + sign) not in place:
                return i, False
            i = place[sources[i], times[i] + sign]
        return i, True

    def similar(i, j, flip):
        values = []
        for d in range(-window, window + 1) if times is not None else [0]:
            a, b = (step(m, d)[0] if d else m for m in (i, j))
            values.append(cosine(mirrored[a] if flip else rows[a], rows[b]))
        return np.mean(values)

    pairs = {}
    for i in range(n):
        for j in range(i + 1, n):
            if sources[i] != sources[j]:
                both = [(similar(i, j, False), False)]
                if mirrored is not None:
                    both.append((similar(i, j, True), True))
                pairs[i, j] = max(both, key=lambda one: one[0])
    nearest = [max(value for pair, (value, _) in pairs.items() if i in pair) for i in range(n)]
    threshold = sorted(nearest, reverse=True)[int(np.ceil(coverage * n)) - 1]
    links = {}
    for (i, j), (value, flip) in pairs.items():
        if value < threshold:
            continue
        better = [sum(v > value for pair, (v, _) in pairs.items() if m in pair) for m in (i, j)]
        if not mutual or max(better) < mutual:
            links[i, j] = value, flip
    for (i, j), (_, flip) in list(links.items()):
        for sign in (1, -1):
            for d in range(1, path + 1):
                (a, there), (b, also) = step(i, sign * d), step(j, sign * d)
                if not (there and also):
                    break
                value = similar(a, b, flip)
                if value < threshold - (1 - follow) * abs(threshold):
                    break
                key = min(a, b), max(a, b)
                if key not in links or links[key][0] < value:
                    links[key] = value, flip
    return grown(links, n, linkage, max_size), threshold, links


def grown(links, n, linkage, max_size):
    """Labels of the classes that links of (value, flip) make, the surest first."""
    classes = {i: {i: False} for i in range(n)}
    for (i, j), (_, flip) in sorted(links.items(), key=lambda one: (-one[1][0], one[0])):
        a, b = classes[i], classes[j]
        if a is b or len(a) + len(b) > max_size:
            continue
        turn = a[i] ^ b[j] ^ flip
        agree = 0
        for m in a:
            for o in b:
                key = min(m, o), max(m, o)
                agree += key in links and links[key][1] == (a[m] ^ b[o] ^ turn)
        if agree >= linkage * len(a) * len(b):
            for m, side in b.items():
                a[m] = side ^ turn
                classes[m] = a
    labels = np.full(n, -1)
    for i in range(n):
        if len(classes[i]) > 1 and labels[i] < 0:
            labels[list(classes[i])] = labels.max() + 1
    return labels


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("mutual", [0, 2])
def test_agrees_with_nested_loops(seed, timed, flipped, mutual):
    rows, sources, times = clips_of(seed=seed)
    times = times if timed else None
    mirrored = None
    if flipped:
        mirrored = rows[:, ::-1].copy()
        rows[12:24], mirrored[12:24] = mirrored[12:24].copy(), rows[12:24].copy()
    options = {"coverage": 0.3, "window": 2, "path": 3, "follow": 0.95, "linkage": 0.5, "mutual": mutual}
    grouping = ConfidentGrouping(max_size=5, max_neighbors=71, **options)
    labels = grouping.fit_predict(rows, sources=sources, mirrored=mirrored, times=times)
    wanted, threshold, links = reference(rows, sources, mirrored, times, max_size=5, **options)
    assert grouping.threshold_ == pytest.approx(threshold, abs=1e-5)
    assert {tuple(pair) for pair in grouping.links_.tolist()} == set(links)
    np.testing.assert_array_equal(labels, wanted)


def test_finds_planted_pairs_and_no_others():
    labels = ConfidentGrouping(coverage=0.2).fit_predict(planted())
    np.testing.assert_array_equal(labels[:6], labels[-6:])
    assert (labels[6:-6] == -1).all()
    assert labels[:6].tolist() == list(range(6))


def test_coverage_sets_one_threshold_for_all():
    rows = planted(200, 20, noise=0.5)
    last = np.inf
    for coverage in (0.05, 0.1, 0.2, 0.5, 1.0):
        grouping = ConfidentGrouping(coverage=coverage).fit(rows)
        assert grouping.threshold_ <= last
        sure = grouping.nearest_similarity_ >= grouping.threshold_
        assert sure.sum() == pytest.approx(coverage * 200, abs=1)
        assert (grouping.link_similarity_ >= grouping.threshold_).all()
        last = grouping.threshold_
    fixed = ConfidentGrouping(min_similarity=last).fit(rows)
    np.testing.assert_array_equal(fixed.labels_, grouping.labels_)


def test_times_do_not_cross_clips_of_a_source():
    rows, sources, times = clips_of()
    one = np.where(sources < 2, 0, sources)  # clips 0 and 1 of one source, 100 apart
    apart = times + np.where(sources == 1, 100, 0)
    links = ConfidentGrouping(coverage=0.3, path=12, follow=0.0).fit(rows, sources=one, times=apart).links_
    assert (one[links[:, 0]] != one[links[:, 1]]).all()
    with pytest.raises(ValueError, match="must differ within a source"):
        ConfidentGrouping().fit(rows, sources=one, times=times)


def test_order_of_samples_does_not_matter():
    rows, sources, times = clips_of()
    grouping = ConfidentGrouping(coverage=0.3)
    labels = grouping.fit_predict(rows, sources=sources, times=times)
    order = np.random.default_rng(1).permutation(len(rows))
    moved = grouping.fit_predict(rows[order], sources=sources[order], times=times[order])
    same = labels[order][:, None] == labels[order][None]
    np.testing.assert_array_equal(same & (labels[order] >= 0), (moved[:, None] == moved[None]) & (moved >= 0))


def test_mirrored_samples_stand_flipped_and_at_most_half():
    rows = planted(80, 8)
    mirrored = rows[:, ::-1].copy()
    rows[-8:], mirrored[-8:] = mirrored[-8:].copy(), rows[-8:].copy()
    grouping = ConfidentGrouping(coverage=0.2)
    labels = grouping.fit_predict(rows, mirrored=mirrored)
    np.testing.assert_array_equal(labels[:8], labels[-8:])
    for label in range(grouping.num_classes_):
        flips = grouping.flips_[labels == label]
        assert 2 * flips.sum() <= len(flips)
    assert (grouping.flips_[:8] ^ grouping.flips_[-8:]).all()
    assert (ConfidentGrouping(coverage=0.2).fit(rows).flips_ == 0).all()


def test_sizes_and_sources_are_bounded():
    centres = np.random.default_rng(0).normal(size=(3, 1, 8))
    rows = (centres + 0.01 * np.random.default_rng(1).normal(size=(3, 20, 8))).reshape(60, 8)
    for max_size in (2, 7, 16):
        labels = ConfidentGrouping(coverage=1.0, max_size=max_size).fit_predict(rows)
        assert np.bincount(labels[labels >= 0]).max() <= max_size
    assert (ConfidentGrouping(coverage=1.0, max_size=2, min_size=2).fit_predict(rows) >= 0).any()
    sources = np.tile(np.arange(5), 12)
    labels = ConfidentGrouping(coverage=1.0, one_per_source=True).fit_predict(rows, sources=sources)
    for label in range(labels.max() + 1):
        assert len(set(sources[labels == label])) == (labels == label).sum()


def test_nothing_sure_is_no_class():
    grouping = ConfidentGrouping(min_similarity=1.0).fit(planted(noise=1.0))
    assert grouping.num_classes_ == 0
    assert (grouping.labels_ == -1).all()
    assert not len(grouping.links_)
    alone = ConfidentGrouping().fit(planted(), sources=np.zeros(60))
    assert (alone.labels_ == -1).all()
    assert (alone.nearest_ == -1).all()


def test_serves_the_sampler_in_rounds():
    rows, sources, times = clips_of(num_clips=8)

    def alone(features):
        return ConfidentGrouping(coverage=0.4).fit_predict(features, sources=sources, times=times)

    grouping = ConfidentGrouping(coverage=0.4)
    sampler = PseudoLabelSampler(rows, 16, grouping=grouping, sources=sources, times=times)
    np.testing.assert_array_equal(sampler.labels, alone(rows))
    assert len(next(iter(sampler))) == 16
    sampler.regroup(rows[:, :12])
    np.testing.assert_array_equal(sampler.labels, alone(rows[:, :12]))


def test_stores_its_parameters_and_leaves_features_alone():
    grouping = ConfidentGrouping(coverage=0.3, mutual=1)
    assert grouping.get_params()["coverage"] == 0.3
    assert "coverage=0.3" in repr(grouping.set_params(mutual=0))
    rows, sources, times = clips_of()
    kept = rows.copy()
    first = grouping.fit_predict(rows, sources=sources, times=times)
    np.testing.assert_array_equal(rows, kept)
    again = ConfidentGrouping(coverage=0.3).fit_predict(5 * rows, sources=sources, times=times)
    np.testing.assert_array_equal(first, again)


test_refuses_options_out_of_range = refuses_each(
    lambda options: ConfidentGrouping(**options).fit(planted()),
    ({"coverage": 0.0}, r"coverage must be in \(0, 1\]"),
    ({"min_similarity": 2.0}, r"min_similarity must be in \[-1, 1\]"),
    ({"window": -1}, "window must be at least 0"),
    ({"min_size": 1}, "min_size must be at least 2"),
    ({"max_size": 1}, "max_size must be at least 2"),
    ({"linkage": 1.5}, r"linkage must be in \[0, 1\]"),
    ({"max_step": 0.0}, "max_step must be above 0"),
    error=ValueError,
)


ROWS, SOURCES, TIMES = clips_of()


test_refuses_data_that_do_not_fit = refuses_each(
    lambda given: ConfidentGrouping().fit(**{"features": ROWS, **given}),
    ({"times": TIMES}, ValueError, "give sources too"),
    ({"sources": SOURCES, "times": TIMES[1:]}, ValueError, r"times must have shape \(72,\)"),
    ({"sources": SOURCES, "times": TIMES.astype(str)}, TypeError, "times must be numbers"),
    ({"features": ROWS[:1]}, ValueError, "at least 2"),
    ({"features": ROWS * (np.arange(72) != 7)[:, None]}, ValueError, "row 7 of features holds zeros"),
)


def test_features_of_one_direction_are_warned_of():
    rows = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    with pytest.warns(UserWarning, match="all features point in one direction.*subtract their mean"):
        ConfidentGrouping().fit(rows + np.float32(1e4))


def test_a_pair_that_is_found_twice_counts_at_its_best():
    rows = np.float32([[0, 1], [1, 0], [0, 1], [1, 0]])
    clips = Clips(np.array([0, 0, 1, 1]), np.array([0.0, 1.0, 0.0, 1.0]), None)
    grouping = ConfidentGrouping(window=0, path=1)
    grouping.threshold_ = 0.5
    links = Links(np.array([0, 1]), np.array([2, 3]), np.array([False, True]), np.float32([1.0, 0.6]))
    found = grouping._followed(rows, rows[:, ::-1].copy(), clips, links)
    assert [part.tolist() for part in found] == [[0, 1], [2, 3], [False, False], [1.0, 1.0]]
