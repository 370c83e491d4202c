"""NMI, AMI, ARI and clustering accuracy, against plain loops, brute force and scikit-learn."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from refusals import no_warning, refuses
from sklearn import metrics

from pml_posets.evaluation import (
    adjusted_mutual_information,
    adjusted_rand_index,
    clustering_accuracy,
    clustering_scores,
    normalized_mutual_information,
)


def labels(seed, num=40, classes=4, clusters=5, unassigned=0.0):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, num)
    predicted = np.where(rng.random(num) < 0.6, true, rng.integers(0, clusters, num))
    predicted[rng.random(num) < unassigned] = -1
    return true, predicted


def accuracy_by_brute_force(true, predicted):
    clusters = sorted({*predicted} - {-1})
    classes = sorted({*true})
    classes += [None] * (len(clusters) - len(classes))  # clusters that get no class
    best = 0
    for order in permutations(classes, len(clusters)):
        match = {-1: -1, **dict(zip(clusters, order, strict=True))}
        best = max(best, sum(p != -1 and match[p] == t for t, p in zip(true, predicted, strict=True)))
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
    pairs = [(true[i] == true[j], predicted[i] == predicted[j]) for i, j in combinations(range(len(true)), 2)]
    agree_true, agree_predicted, both = (
        sum(x) for x in (*zip(*pairs, strict=True), [a and b for a, b in pairs])
    )
    expected = agree_true * agree_predicted / len(pairs)
    return (both - expected) / ((agree_true + agree_predicted) / 2 - expected)


@pytest.mark.parametrize(("classes", "clusters"), [(4, 5), (5, 3), (6, 6), (1, 3), (3, 1)])
@pytest.mark.parametrize("unassigned", [0.0, 0.3])
def test_accuracy_by_brute_force(classes, clusters, unassigned):
    for seed in range(3):
        true, predicted = labels(seed, classes=classes, clusters=clusters, unassigned=unassigned)
        expected = accuracy_by_brute_force(true.tolist(), predicted.tolist())
        assert clustering_accuracy(true, predicted) == pytest.approx(expected)


def test_accuracy_by_hand():
    true = [0, 0, 0, 1, 1, 2]
    assert clustering_accuracy(true, [9, 9, 9, 4, 4, 7]) == 1.0
    assert clustering_accuracy(true, [0, 0, 0, 0, 0, 0]) == 3 / 6  # one cluster has one class
    assert clustering_accuracy(true, [0, 1, 2, 3, 4, 5]) == 3 / 6  # one cluster of every class counts
    assert clustering_accuracy(true, [0, 0, -1, 1, -1, -1]) == 3 / 6
    assert clustering_accuracy(true, [-1] * 6) == 0.0
    # The greedy choice (cluster 0 to class 0, 3 right) leaves 1; the best is 2 + 2.
    assert clustering_accuracy([0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1]) == 4 / 7


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("unassigned", [0.0, 0.3])
def test_all_four_by_plain_loops(seed, unassigned):
    true, predicted = labels(seed, unassigned=unassigned)
    # A sample in no cluster is one of its own.
    alone = [1000 + i if label == -1 else label for i, label in enumerate(predicted.tolist())]
    scores = clustering_scores(true, predicted)
    assert scores.nmi == normalized_mutual_information(true, predicted)
    assert scores.nmi == pytest.approx(nmi_by_loops(true.tolist(), alone))
    assert scores.ari == adjusted_rand_index(true, predicted)
    assert scores.ari == pytest.approx(ari_by_loops(true.tolist(), alone))
    assert scores.ami == adjusted_mutual_information(true, predicted)
    assert scores.ami == pytest.approx(metrics.adjusted_mutual_info_score(true, alone))
    assert scores.accuracy == clustering_accuracy(true, predicted)
    assert (scores.num_clusters, scores.num_unassigned) == (5, int((predicted == -1).sum()))


def test_neither_names_nor_order_matter():
    true, predicted = labels(8)
    order = np.random.default_rng(0).permutation(40)
    names = np.random.default_rng(1).permutation(5) * 2**40 + 2**24
    moved = clustering_scores(torch.from_numpy(true[order] - 3), names[predicted[order]].tolist())
    assert vars(moved) == pytest.approx(vars(clustering_scores(true, predicted)))
    # Ids that float32 would merge.
    assert clustering_accuracy([0, 1], [2**24, 2**24 + 1]) == 1.0
    assert clustering_accuracy([2**24, 2**24 + 1], [0, 0]) == 0.5


def test_the_edges():
    assert [*vars(clustering_scores([3, 3, 3], [1, 1, 1])).values()] == [1.0, 1.0, 1.0, 1.0, 1, 0]
    assert np.isnan([*vars(clustering_scores([], [])).values()][:4]).all()
    random = clustering_scores(*np.random.default_rng(0).integers(0, 10, (2, 5000)))
    assert abs(random.ami) < 0.01
    assert abs(random.ari) < 0.01
    with no_warning():  # scikit-learn may take many ids for a regression's values
        nothing = clustering_scores(np.repeat(np.arange(4), 25), np.full(100, -1))  # it earns nothing
    assert (nothing.ami, nothing.ari, nothing.accuracy) == pytest.approx((0, 0, 0), abs=1e-9)
    assert (nothing.num_clusters, nothing.num_unassigned) == (0, 100)


def by(*arguments, measure=clustering_scores):
    return lambda: measure(*arguments)


test_wrong_input = refuses(
    (by([0, 1, 1], [0, 1]), ValueError, "predicted_labels must have shape (3,)"),
    (by([0, 1], [0.0, 1.0]), TypeError, "predicted_labels must be integers, got dtype float64"),
    (by(["a", "b"], [0, 1], measure=clustering_accuracy), TypeError, "true_labels must be integers"),
    (by([[0, 1]], [0], measure=adjusted_rand_index), ValueError, "true_labels must have shape"),
    (by(3, 3), ValueError, "true_labels must have shape"),
)
