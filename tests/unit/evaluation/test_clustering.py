"""NMI, AMI, ARI and clustering accuracy, against plain loops, brute force and scikit-learn."""

import math
import warnings
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn import metrics

from pml_posets.evaluation import (
    ClusteringScores,
    adjusted_mutual_information,
    adjusted_rand_index,
    clustering_accuracy,
    clustering_scores,
    normalized_mutual_information,
)

MEASURES = [normalized_mutual_information, adjusted_mutual_information, adjusted_rand_index]


def labels(seed, num=40, classes=4, clusters=5, unassigned=0.0):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, num)
    predicted = np.where(rng.random(num) < 0.6, true, rng.integers(0, clusters, num))
    predicted[rng.random(num) < unassigned] = -1
    return true, predicted


def accuracy_by_brute_force(true, predicted):
    clusters = sorted(set(predicted.tolist()) - {-1})
    classes = sorted(set(true.tolist()))
    classes += [None] * (len(clusters) - len(classes))  # clusters that get no class
    best = 0
    for order in permutations(classes, len(clusters)):
        match = dict(zip(clusters, order, strict=True))
        best = max(
            best,
            sum(p != -1 and match[p] == t for t, p in zip(true.tolist(), predicted.tolist(), strict=True)),
        )
    return best / len(true)


def nmi_by_loops(true, predicted):
    num, mutual, entropies = len(true), 0.0, []
    for values in (true, predicted):
        shares = [sum(v == w for w in values) / num for v in set(values)]
        entropies.append(-sum(s * math.log(s) for s in shares))
    for t in set(true):
        for p in set(predicted):
            both = sum(a == t and b == p for a, b in zip(true, predicted, strict=True)) / num
            if both:
                alone = sum(a == t for a in true) * sum(b == p for b in predicted) / num**2
                mutual += both * math.log(both / alone)
    return 2 * mutual / sum(entropies)


def ari_by_loops(true, predicted):
    agree_true = agree_predicted = agree_both = pairs = 0
    for i in range(len(true)):
        for j in range(i):
            a, b = true[i] == true[j], predicted[i] == predicted[j]
            agree_true, agree_predicted, agree_both, pairs = (
                agree_true + a,
                agree_predicted + b,
                agree_both + (a and b),
                pairs + 1,
            )
    expected = agree_true * agree_predicted / pairs
    return (agree_both - expected) / ((agree_true + agree_predicted) / 2 - expected)


@pytest.mark.parametrize(("classes", "clusters"), [(4, 5), (5, 3), (6, 6), (1, 3), (3, 1)])
@pytest.mark.parametrize("unassigned", [0.0, 0.3])
def test_accuracy_by_brute_force(classes, clusters, unassigned):
    for seed in range(5):
        true, predicted = labels(seed, classes=classes, clusters=clusters, unassigned=unassigned)
        assert clustering_accuracy(true, predicted) == pytest.approx(accuracy_by_brute_force(true, predicted))


def test_accuracy_by_hand():
    true = [0, 0, 0, 1, 1, 2]
    assert clustering_accuracy(true, [9, 9, 9, 4, 4, 7]) == 1.0
    assert clustering_accuracy(true, [0, 0, 0, 0, 0, 0]) == 3 / 6  # one cluster has one class
    assert clustering_accuracy(true, [0, 1, 2, 3, 4, 5]) == 3 / 6  # one cluster of every class counts
    assert clustering_accuracy(true, [0, 0, -1, 1, -1, -1]) == 3 / 6
    assert clustering_accuracy(true, [-1] * 6) == 0.0
    # The greedy choice (cluster 0 to class 0, 3 right) leaves 1; the best is 2 + 2.
    assert clustering_accuracy([0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1]) == 4 / 7


@pytest.mark.parametrize("seed", range(4))
def test_by_plain_loops(seed):
    true, predicted = labels(seed)
    assert normalized_mutual_information(true, predicted) == pytest.approx(
        nmi_by_loops(true.tolist(), predicted.tolist())
    )
    assert adjusted_rand_index(true, predicted) == pytest.approx(
        ari_by_loops(true.tolist(), predicted.tolist())
    )
    assert adjusted_mutual_information(true, predicted) == pytest.approx(
        metrics.adjusted_mutual_info_score(true, predicted)
    )


@pytest.mark.parametrize("seed", range(4))
def test_unassigned_samples_are_clusters_of_their_own(seed):
    true, predicted = labels(seed, unassigned=0.3)
    alone = predicted.tolist()
    for i, label in enumerate(alone):
        if label == -1:
            alone[i] = 1000 + i
    assert alone.count(-1) == 0
    assert normalized_mutual_information(true, predicted) == pytest.approx(nmi_by_loops(true.tolist(), alone))
    assert adjusted_rand_index(true, predicted) == pytest.approx(ari_by_loops(true.tolist(), alone))
    assert adjusted_mutual_information(true, predicted) == pytest.approx(
        metrics.adjusted_mutual_info_score(true, alone)
    )
    assert adjusted_rand_index(true, predicted) != pytest.approx(metrics.adjusted_rand_score(true, predicted))


def test_leaving_samples_out_earns_nothing():
    true = np.repeat(np.arange(4), 10)
    scores = clustering_scores(true, np.full(40, -1))
    assert (scores.ami, scores.ari, scores.accuracy) == pytest.approx((0, 0, 0), abs=1e-9)
    assert (scores.num_clusters, scores.num_unassigned) == (0, 40)


def test_all_four_together():
    true, predicted = labels(7, unassigned=0.1)
    scores = clustering_scores(true, predicted)
    assert scores == ClusteringScores(
        *(measure(true, predicted) for measure in MEASURES),
        clustering_accuracy(true, predicted),
        num_clusters=5,
        num_unassigned=int((predicted == -1).sum()),
    )
    assert scores.num_unassigned > 0


def test_neither_names_nor_order_matter():
    true, predicted = labels(8)
    scores = clustering_scores(true, predicted)
    order = np.random.default_rng(0).permutation(40)
    names = np.random.default_rng(1).permutation(5) * 2**40 + 2**24
    moved = clustering_scores(torch.from_numpy(true[order] - 3), names[predicted[order]].tolist())
    assert vars(moved) == pytest.approx(vars(scores))
    # Ids that float32 would merge.
    assert clustering_accuracy([0, 1], [2**24, 2**24 + 1]) == 1.0
    assert clustering_accuracy([2**24, 2**24 + 1], [0, 0]) == 0.5


def test_the_edges():
    assert vars(clustering_scores([3, 3, 3], [1, 1, 1])) == {
        "nmi": 1.0,
        "ami": 1.0,
        "ari": 1.0,
        "accuracy": 1.0,
        "num_clusters": 1,
        "num_unassigned": 0,
    }
    empty = clustering_scores([], [])
    assert all(math.isnan(value) for value in (empty.nmi, empty.ami, empty.ari, empty.accuracy))
    random = clustering_scores(*np.random.default_rng(0).integers(0, 10, (2, 5000)))
    assert abs(random.ami) < 0.01
    assert abs(random.ari) < 0.01
    assert 0.1 < random.accuracy < 0.15
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn may take many ids for a regression's values
        clustering_scores(np.arange(100), np.full(100, -1))


@pytest.mark.parametrize("measure", [*MEASURES, clustering_accuracy, clustering_scores])
def test_wrong_input(measure):
    with pytest.raises(ValueError, match=r"predicted_labels must have shape \(3,\) .* got \(2,\)"):
        measure([0, 1, 1], [0, 1])
    with pytest.raises(TypeError, match="predicted_labels must be integers, got dtype float64"):
        measure([0, 1], [0.0, 1.0])
    with pytest.raises(TypeError, match="true_labels must be integers"):
        measure(["a", "b"], [0, 1])
    with pytest.raises(ValueError, match="true_labels must have shape"):
        measure([[0, 1]], [0])
    with pytest.raises(ValueError, match="true_labels must have shape"):
        measure(3, 3)
