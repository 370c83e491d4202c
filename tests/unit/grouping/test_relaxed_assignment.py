"""The y-step: G by its definition, G never falls, the bound holds, planted clusters are recovered."""

import numpy as np
import pytest
import torch
from refusals import refuses_each
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score

from pml_posets.grouping._groups import Space
from pml_posets.grouping._relaxation import Candidates, Problem, gain_of_joining, gain_of_leaving
from pml_posets.grouping.relaxed_assignment import RelaxedAssignment, compactness
from pml_posets.neighbors.nearest import Neighbors, search


def loop_compactness(features, labels, scale=1.0):
    """Eq. 7, sample by sample."""
    total = 0.0
    for c in range(max(labels) + 1):
        members = [i for i in range(len(labels)) if labels[i] == c]
        for i in members:
            gaps = [np.linalg.norm(features[i] - features[j]) for j in members]
            total += sum(np.exp(-np.array(gaps) / scale)) / len(members) ** 2
    return total


def planted(num_clusters, size, noise=0, num_dims=16, spread=0.3, seed=0, unit=True):
    """Features (rows of length 1 by default) and the cluster of each, -1 for noise."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.repeat(np.arange(num_clusters), size), np.full(noise, -1)])
    features = rng.normal(size=(truth.size, num_dims))
    inside = truth >= 0
    features[inside] = spread * features[inside] + rng.normal(size=(num_clusters, num_dims))[truth[inside]]
    if unit:
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32), truth


def corrupted(truth, wrong, out, seed=1):
    """A share of the labels at random, a share unassigned."""
    rng = np.random.default_rng(seed)
    draw = rng.random(truth.size)
    labels = np.where(draw < wrong, rng.integers(0, truth.max() + 1, truth.size), truth)
    return np.where((draw >= wrong) & (draw < wrong + out), -1, labels)


def score(truth, labels):
    """ARI over the assigned samples."""
    return adjusted_rand_score(truth[labels >= 0], labels[labels >= 0])


def check(assignment, features, start, mirrored=None, flips=None):
    """G is exact and never falls, the bound holds, labels are contiguous."""
    labels = assignment.labels_
    assert labels.shape == start.shape
    assert labels.dtype == np.int64
    sizes = np.bincount(labels[labels >= 0], minlength=assignment.num_classes_)
    assert len(sizes) == assignment.num_classes_
    assert min(sizes, default=assignment.min_size) >= assignment.min_size
    history = assignment.objective_
    assert history == sorted(history)
    options = {"mirrored": mirrored, "flips": assignment.flips_} if mirrored is not None else {}
    assert history[-1] == pytest.approx(compactness(features, labels, assignment.scale, **options), abs=1e-9)
    if np.bincount(start[start >= 0], minlength=1).min() >= assignment.min_size:
        options = {"mirrored": mirrored, "flips": flips} if mirrored is not None else {}
        before = compactness(features, start, assignment.scale, **options)
        assert history[0] == pytest.approx(before, abs=1e-9)
        assert compactness(features, labels, assignment.scale) >= before or mirrored is not None
        assert assignment.num_moved_ == (labels != start).sum()


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_compactness_is_eq_7(scale):
    rng = np.random.default_rng(0)
    features, mirrored = rng.normal(size=(2, 90, 5)).astype(np.float32)
    flips = rng.random(90) < 0.5
    for labels in (rng.integers(-1, 4, 90), np.zeros(90, int)):
        expected = loop_compactness(features, labels, scale)
        assert compactness(features, labels, scale) == pytest.approx(expected, rel=1e-6)
        turned = compactness(torch.from_numpy(features), labels, scale, mirrored=mirrored, flips=flips)
        expected = loop_compactness(np.where(flips[:, None], mirrored, features), labels, scale)
        assert turned == pytest.approx(expected, rel=1e-6)


def test_compactness_by_hand():
    features = np.float32([[0.0], [np.log(2)], [9.0], [9.0], [1.0]])
    assert compactness(features, [0, 0, 1, 1, -1]) == pytest.approx((1 + 1 + 0.5 + 0.5) / 4 + 1)
    assert compactness(features, [0, 1, 2, 3, -1]) == pytest.approx(4)
    assert compactness(features, [-1] * 5) == 0


@pytest.mark.parametrize(
    ("num_clusters", "size", "spread", "wrong", "out", "k"),
    [
        (10, 6, 0.1, 0.2, 0.0, None),
        (50, 8, 0.3, 0.1, 0.2, None),
        (50, 8, 0.2, 0.2, 0.0, 16),
        (20, 20, 0.3, 0.3, 0.1, None),
        (8, 100, 0.3, 0.1, 0.2, None),
    ],
)
def test_planted_clusters_are_recovered(num_clusters, size, spread, wrong, out, k):
    features, truth = planted(num_clusters, size, spread=spread)
    start = corrupted(truth, wrong, out)
    neighbors = None if k is None else search(features, k)
    assignment = RelaxedAssignment(min_size=2).fit(features, start, neighbors=neighbors)
    check(assignment, features, start)
    assert assignment.objective_[-1] > assignment.objective_[0]
    assert score(truth, assignment.labels_) >= max(0.93, score(truth, start) + 0.2 * (wrong > 0.1))
    assert (assignment.labels_ < 0).mean() <= 0.1


@pytest.mark.parametrize("unit", [True, False])
def test_the_planting_itself_stays(unit):
    features, truth = planted(40, 8, spread=0.1, unit=unit)
    assignment = RelaxedAssignment().fit(features, truth)
    check(assignment, features, truth)
    assert adjusted_rand_score(truth, assignment.labels_) > 0.95


@pytest.mark.parametrize("seed", range(8))
def test_g_never_falls_and_the_bound_holds_on_noise(seed):
    rng = np.random.default_rng(seed)
    num_samples = int(rng.integers(12, 150))
    features = rng.normal(size=(num_samples, int(rng.integers(1, 9)))).astype(np.float32)
    start = rng.integers(-1, num_samples // 8, num_samples)
    start = np.unique(start, return_inverse=True)[1] - 1
    assignment = RelaxedAssignment(
        min_size=int(rng.integers(1, 5)),
        num_candidates=int(rng.integers(1, 7)),
        tolerance=[None, 0.0, 0.3, 1.0][seed % 4],
        max_references=int(rng.integers(2, 40)),
        batch_classes=int(rng.integers(1, 9)),
        num_steps=8,
        lr=5.0,
    )
    assignment.fit(features, start)
    check(assignment, features, start)


def test_strangers_stay_out():
    features, truth = planted(30, 8, noise=200, spread=0.15)
    start = corrupted(truth, 0, 0)
    wrong = np.random.default_rng(0).permutation(np.arange(240))[:40]
    start[wrong] = np.random.default_rng(1).integers(0, 30, 40)
    assignment = RelaxedAssignment().fit(features, start)
    check(assignment, features, start)
    assert (assignment.labels_[240:] < 0).mean() > 0.98
    assert score(truth[:240], assignment.labels_[:240]) > 0.95


def test_eq_7_as_printed_shrinks_classes_to_the_bound():
    """The trivial solution that the default tolerance is there to avoid."""
    features, truth = planted(20, 10, spread=0.3)
    printed = RelaxedAssignment(min_size=4, tolerance=0.0, num_rounds=20, lr=100.0).fit(features, truth)
    check(printed, features, truth)
    held = RelaxedAssignment(min_size=4).fit(features, truth)
    assert np.bincount(printed.labels_[printed.labels_ >= 0]).mean() < 7
    assert np.bincount(held.labels_[held.labels_ >= 0]).mean() > 9
    assert printed.objective_[-1] > held.objective_[-1]


def test_small_classes_of_the_start_dissolve():
    features, truth = planted(6, 5, spread=0.1)
    start = truth.copy()
    start[5:8] = -1  # leaves two of class 1
    assignment = RelaxedAssignment(min_size=3).fit(features, start)
    check(assignment, features, start)
    assert assignment.num_classes_ == 5
    kept = start.copy()
    kept[8:10] = -1
    kept[kept > 1] -= 1
    assert assignment.objective_[0] == pytest.approx(compactness(features, kept))
    assert (assignment.labels_[10:] == truth[10:] - 1).all()


def test_nothing_to_assign():
    features, truth = planted(4, 5)
    assignment = RelaxedAssignment().fit(features, np.full(20, -1))
    assert (assignment.labels_ == -1).all()
    assert (assignment.objective_, assignment.num_classes_, assignment.num_moved_) == ([0.0], 0, 0)
    one = RelaxedAssignment().fit(features[:5], np.zeros(5, int))
    assert one.num_classes_ == 1
    too_large = RelaxedAssignment(min_size=6).fit(features, truth)
    assert too_large.num_classes_ == 0


def mirrored_case():
    features, truth = planted(20, 8, spread=0.1)
    turned = np.random.default_rng(5).random(160) < 0.4
    features[turned] = features[turned, ::-1]
    return features, np.ascontiguousarray(features[:, ::-1]), truth, turned


@pytest.mark.parametrize("with_neighbors", [False, True])
def test_samples_join_in_the_nearer_orientation(with_neighbors):
    features, mirrored, truth, turned = mirrored_case()
    start = corrupted(truth, 0.2, 0.1)
    flips = turned & (start == truth)
    found = search(features, 12, mirrored=mirrored) if with_neighbors else None
    assignment = RelaxedAssignment(min_size=2).fit(features, start, mirrored, flips, None, found)
    check(assignment, features, start, mirrored, flips)
    assert score(truth, assignment.labels_) > 0.95
    right = assignment.labels_ == truth
    assert (assignment.flips_ == turned)[right].mean() > 0.97
    assert not assignment.flips_[assignment.labels_ < 0].any()


def test_no_second_sample_of_a_source_joins():
    features, truth = planted(20, 8, spread=0.1)
    copies = features + np.float32(0.001)  # the next frame of each, very similar
    both, truth = np.concatenate([features, copies]), np.tile(truth, 2)
    sources = np.tile(np.arange(160), 2)
    start = np.concatenate([corrupted(truth[:160], 0.2, 0.0), np.full(160, -1)])
    free = RelaxedAssignment().fit(both, start)
    assert (free.labels_[160:] >= 0).mean() > 0.9
    bound = RelaxedAssignment().fit(both, start, sources=sources)
    check(bound, both, start)
    assert score(truth[:160], bound.labels_[:160]) > 0.9
    pairs = [(c, s) for c, s in zip(bound.labels_, sources, strict=True) if c >= 0]
    assert len(set(pairs)) == len(pairs)


def test_deterministic_and_independent_of_the_global_state():
    features, truth = planted(30, 12, spread=0.5)
    start = corrupted(truth, 0.2, 0.2)
    options = {"random_state": 3, "max_references": 20, "batch_classes": 7}
    first = RelaxedAssignment(**options).fit(features, start)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(4)
    second = RelaxedAssignment(**options).fit(torch.from_numpy(features), torch.from_numpy(start))
    assert first.labels_.tolist() == second.labels_.tolist()
    assert first.objective_ == second.objective_


def test_gains_are_those_of_g():
    features = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    labels, sizes = np.array([0, 0, 0, 0, 1, 1, 1, -1, -1]), np.array([4, 3])
    near = np.exp(-np.linalg.norm(features[:, None] - features[None], axis=2))
    classes = [0, 1, 2, 3], [4, 5, 6]
    means = np.array([np.mean([near[i, j] for i in c for j in c if i != j]) for c in classes])

    def change(i, label):
        """Of G, if sample i had another label."""
        moved = labels.copy()
        moved[i] = label
        return compactness(features, moved) - compactness(features, labels)

    for i in range(9):
        others = [j for j in range(9) if labels[j] == labels[i] and j != i]
        similarity = near[i, others].mean() if labels[i] >= 0 else 0.5
        gain = gain_of_leaving(np.array([similarity]), labels[[i]], means, sizes)[0]
        assert gain == pytest.approx(change(i, -1), abs=1e-6)
    for i in (7, 8):
        for c in (0, 1):
            gain = gain_of_joining(near[[i]][:, labels == c].mean(1), np.array([c]), means, sizes)[0]
            assert gain == pytest.approx(change(i, c), abs=1e-6)
    assert gain_of_joining(np.array([0.5]), np.array([-1]), means, sizes)[0] == 0


@pytest.mark.parametrize("sources", [None, [0, 0, 1, 2, 2, 3, 4, 5, 6, 7]])
def test_relaxed_similarities_by_their_definition(sources):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(10, 3)).astype(np.float32)
    candidates = Candidates(np.tile([0, 1], (10, 1)), np.zeros((10, 2), bool))
    codes = None if sources is None else np.array(sources)
    problem = Problem(features, None, codes, Space.of(features, None, 1.0))
    affinity = torch.from_numpy(rng.random((10, 3)).astype(np.float32))
    near = np.exp(-np.linalg.norm(features[:, None] - features[None], axis=2))
    counted = ~np.eye(10, dtype=bool) if codes is None else codes[:, None] != codes
    for pool in problem.pools(candidates, 128, rng):
        value, mean = pool.gradient(affinity)
        for row, c in enumerate(pool.classes.tolist()):
            weight = affinity[:, c].numpy()
            expected = [
                sum(weight[j] * near[i, j] for j in range(10) if counted[i, j])
                / sum(weight[j] for j in range(10) if counted[i, j])
                for i in range(10)
            ]
            samples = (pool.entries[row] // 3).tolist()
            assert sorted(samples) == list(range(10))
            np.testing.assert_allclose(value[row], np.array(expected)[samples], rtol=1e-4)
            assert float(mean[row]) == pytest.approx(np.average(expected, weights=weight), rel=1e-4)


def test_scikit_learn_can_handle_it():
    assignment = clone(RelaxedAssignment(lr=0.5)).set_params(min_size=5)
    assert repr(assignment) == "RelaxedAssignment(lr=0.5, min_size=5)"


COUNTS = ("min_size", "num_candidates", "num_steps", "batch_classes", "num_rounds", "max_references")


test_bad_options_say_what_is_wrong = refuses_each(
    lambda options: RelaxedAssignment(**options).fit(np.eye(6), [0, 0, 0, 1, 1, 1]),
    *(({name: 0}, f"{name} must be at least 1") for name in COUNTS),
    *(({"lr": number}, "lr must be above 0") for number in (0.0, np.nan)),
    *(({"tolerance": number}, r"tolerance must be in \[0, 1\]") for number in (-0.1, 1.5)),
    ({"scale": np.inf}, "scale must be above 0"),
    ({"random_state": -1}, "random_state must be at least 0"),
    error=ValueError,
)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"labels": [0] * 5}, ValueError, r"labels must have shape \(6,\)"),
        ({"labels": [0.0] * 6}, TypeError, "labels must be integers"),
        ({"labels": [0, 0, 0, -2, 0, 0]}, ValueError, "got -2 at index 3"),
        ({"labels": [0, 0, 0, 2, 2, 2]}, ValueError, "renumber"),
        ({"features": np.full((6, 2), np.nan)}, ValueError, "features must be finite"),
        ({"mirrored": np.eye(5)}, ValueError, "mirrored must have the shape"),
        ({"flips": np.ones(6, bool)}, ValueError, "no mirrored features"),
        ({"sources": [1]}, ValueError, r"sources must have shape \(6,\)"),
        ({"neighbors": search(np.eye(5), 2)}, ValueError, "a row for each of the 6 samples"),
        ({"neighbors": search(np.eye(6), 2), "mirrored": np.eye(6)}, ValueError, "do not match"),
        ({"neighbors": Neighbors(np.full((6, 1), 7), np.ones((6, 1)))}, ValueError, "another dataset"),
    ],
)
def test_bad_input_says_what_is_wrong(given, error, text):
    given = {"features": np.eye(6), "labels": [0, 0, 0, 1, 1, 1], **given}
    with pytest.raises(error, match=text):
        RelaxedAssignment().fit_predict(**given)
    if not {"sources", "neighbors"} & set(given):
        with pytest.raises(error, match=text):
            compactness(**given)
