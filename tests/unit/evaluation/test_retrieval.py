"""Recall@k, R-precision and MAP@R, against plain loops and pytorch-metric-learning's own calculator."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from refusals import refuses

from pml_posets.evaluation import retrieval, retrieval_scores


def data(seed=0, num=60, classes=7, dim=4):
    """Classes of all sizes, some samples alone in theirs, weakly grouped."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.3, num) - 1, classes) * 3 - 1
    labels[:2] = [1000, 2000]
    centers = rng.normal(size=(2001 + classes * 3, dim))
    return (centers[labels] + 0.8 * rng.normal(size=(num, dim))).astype(np.float32), labels


def by_loops(features, labels, k, queries=None, query_features=None, query_labels=None):
    """Recall@k, R-precision, MAP@R, number of excluded queries, sample by sample."""
    if query_features is None:
        rows = range(len(features)) if queries is None else queries
        asked = [(i, features[i], labels[i]) for i in rows]
    else:
        asked = [(None, q, c) for q, c in zip(query_features, query_labels, strict=True)]
    values, excluded = [], 0
    for i, query, label in asked:
        order = sorted(
            (j for j in range(len(features)) if j != i),
            key=lambda j: (float(np.sum((query.astype(np.float64) - features[j]) ** 2)), j),
        )
        hits = [labels[j] == label for j in order]
        num = sum(hits)
        if num == 0:
            excluded += 1
            continue
        precision = [sum(hits[: j + 1]) / (j + 1) for j in range(num)]
        average = sum(p for p, hit in zip(precision, hits, strict=False) if hit) / num
        values.append((float(any(hits[:k])), sum(hits[:num]) / num, average))
    return (*np.mean(values, axis=0), excluded)


def numbers(scores, k):
    return scores.recall[k], scores.r_precision, scores.map_at_r, scores.num_excluded


@pytest.mark.parametrize(("seed", "k", "offset"), [(0, 1, 0), (1, 3, 0), (2, 59, 0), (0, 3, 2**12)])
def test_by_plain_loops(seed, k, offset):
    features, labels = data(seed)
    features += offset  # far from the origin distances are what they were, up to the rounding of the sums
    scores = retrieval_scores(features, labels, ks=(k,), similarity="euclidean")
    expected = by_loops(features, labels, k)
    assert numbers(scores, k) == pytest.approx(expected)
    assert expected[-1] >= 2
    assert scores.num_queries + scores.num_excluded == 60


def test_some_queries_by_plain_loops():
    features, labels = data(3)
    rows = [5, 0, 17, 17, 40]
    scores = retrieval_scores(features, labels, ks=(2,), queries=rows, similarity="euclidean")
    assert numbers(scores, 2) == pytest.approx(by_loops(features, labels, 2, queries=rows))
    assert scores.counted.tolist() == [True, False, True, True, True]


def test_a_separate_set_of_queries_by_plain_loops():
    features, labels = data(4)
    asked, asked_labels = data(5, num=30)
    asked_labels[3] = -77  # a class nobody has
    separate = {"query_features": asked, "query_labels": asked_labels}
    scores = retrieval_scores(features, labels, ks=(4,), similarity="euclidean", **separate)
    assert numbers(scores, 4) == pytest.approx(by_loops(features, labels, 4, **separate))
    assert not scores.counted[3]
    same = retrieval_scores(features, labels, ks=(1,), query_features=features, query_labels=labels)
    assert same.recall == {1: 1.0}  # nothing is left out: every sample finds itself
    assert same.num_excluded == 0


@pytest.mark.parametrize("seed", range(2))
def test_the_numbers_of_pml(seed):
    features, labels = data(seed, num=150)
    scores = retrieval_scores(features, labels)
    unit = torch.nn.functional.normalize(torch.from_numpy(features))
    pmls = AccuracyCalculator(exclude=("NMI", "AMI"), device=torch.device("cpu"), k=None)
    theirs = pmls.get_accuracy(unit, torch.from_numpy(labels))
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    assert numbers(scores, 1)[:3] == pytest.approx([theirs[name] for name in names])


def test_by_hand():
    # Sample 0 of class 0 finds 1 (its own class), 2 (not), 3 (its own): R = 2; then the other way round.
    for features, recall, r_precision, average in (
        ([[0.0], [1.0], [2.0], [3.0]], {1: 1.0, 2: 1.0, 3: 1.0}, 0.5, 0.5),  # (1 + 0) / 2
        ([[0.0], [2.0], [1.0], [3.0]], {1: 0.0, 2: 1.0, 3: 1.0}, 0.5, 0.25),  # (0 + 1/2) / 2
    ):
        scores = retrieval_scores(features, [0, 0, 1, 0], (1, 2, 3), queries=[0], similarity="euclidean")
        assert scores.num_relevant.tolist() == [2]
        assert (scores.recall, scores.r_precision, scores.map_at_r) == (recall, r_precision, average)


def test_labels_are_compared_as_whole_numbers():
    features = [[0.0, 1.0], [0.1, 1.0], [0.2, 1.0], [0.3, 1.0]]
    scores = retrieval_scores(features, torch.tensor([0, 1, 0, 1]) + 2**24, ks=(1, 2))  # float32 merges them
    assert scores.recall[1] == 0.0
    assert scores.num_relevant.tolist() == [1, 1, 1, 1]
    huge = [2**63 - 1, 2**63 - 2, 2**63 - 1, -(2**63)]
    assert retrieval_scores(features, huge).num_relevant.tolist() == [1, 0, 1, 0]


def test_neither_order_nor_scale_nor_names_matter():
    features, labels = data(6)
    scores = retrieval_scores(features, labels)
    order = np.random.default_rng(0).permutation(60)
    moved = retrieval_scores(features[order], labels[order])
    np.testing.assert_allclose(moved.average_precisions_at_r, scores.average_precisions_at_r[order])
    lengths = np.random.default_rng(1).uniform(0.1, 10, (60, 1)).astype(np.float32)
    assert retrieval_scores(features * lengths, labels * 5 - 9).recall == scores.recall
    assert retrieval_scores(torch.from_numpy(features), labels.tolist()).recall == scores.recall
    halves = torch.from_numpy(features).bfloat16()
    assert retrieval_scores(halves, labels).recall == retrieval_scores(halves.double(), labels).recall


def test_blocks_do_not_matter(monkeypatch):
    features, labels = data(7)
    whole = retrieval_scores(features, labels)
    calls, plain = [], retrieval.search
    monkeypatch.setattr(retrieval, "search", lambda *a, **k: calls.append(k) or plain(*a, **k))
    monkeypatch.setattr(retrieval, "_BLOCK_NUMBERS", 60)
    parts = retrieval_scores(features, labels)
    assert len(calls) > 8
    assert all(len(call["queries"]) <= 7 for call in calls)
    np.testing.assert_array_equal(parts.average_precisions_at_r, whole.average_precisions_at_r)
    assert parts.recall == whole.recall


def test_nothing_to_find():
    scores = retrieval_scores(np.eye(3), [0, 1, 2])
    assert (scores.num_queries, scores.num_excluded) == (0, 3)
    assert all(math.isnan(value) for value in numbers(scores, 1)[:-1])
    assert retrieval_scores(np.eye(1), [0]).num_excluded == 1
    assert retrieval_scores(np.eye(3), [0, 0, 0], queries=[]).num_queries == 0


def test_one_class_and_collapsed_features():
    one = retrieval_scores(np.random.default_rng(0).normal(size=(9, 2)), np.zeros(9, int), ks=(1, 50))
    assert (one.recall, one.r_precision, one.map_at_r) == ({1: 1.0, 50: 1.0}, 1.0, 1.0)
    for flat in (
        np.ones((6, 3)),
        np.zeros((6, 3)),
    ):  # all are equally near: row 0 is first in every other list
        assert retrieval_scores(flat, [0, 0, 1, 1, 2, 2], ks=(1,)).recall == {1: 2 / 6}


def test_there_is_never_a_square_matrix():
    rng = np.random.default_rng(0)
    num = 8_000
    features = rng.normal(size=(num, 16)).astype(np.float32)
    tracemalloc.start()
    scores = retrieval_scores(features, rng.integers(0, num // 10, num))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scores.num_queries > 0.95 * num
    assert peak < num * num / 2  # not even half a byte a pair: numpy's arrays, of which torch's are views


def wrong(features=np.eye(3), labels=(0, 1, 1), **settings):  # noqa: B008
    return lambda: retrieval_scores(features, labels, **settings)


def separate(features=None, labels=None, **settings):
    return wrong(query_features=features, query_labels=labels, **settings)


EYE = np.eye(3)

test_wrong_input = refuses(
    (wrong(labels=[0.0, 1.0, 1.0]), TypeError, "labels must be integers, got dtype float64"),
    (wrong(labels=["a", "b", "b"]), TypeError, "return_inverse"),
    (wrong(labels=[0, 1]), ValueError, "labels must have shape (3,)"),
    (wrong(labels=np.array([2**63, 1, 1], np.uint64)), ValueError, "must fit int64"),
    (wrong(np.full((3, 3), np.inf)), ValueError, "features must be finite"),
    (wrong(ks=(0,)), ValueError, "every k of ks must be at least 1"),
    (wrong(queries=[3]), ValueError, "lie in 0..2"),
    (wrong(queries=[-1]), ValueError, "lie in 0..2"),
    (wrong(queries=[0.5]), TypeError, "integers (row numbers)"),
    (separate(EYE), ValueError, "belong together"),
    (separate(labels=[0]), ValueError, "belong together"),
    (separate(EYE, [0] * 3, queries=[0]), ValueError, "not both"),
    (separate(EYE, [0]), ValueError, "query_labels must have shape (3,)"),
    (separate(np.eye(2), [0, 0]), ValueError, "3 dimensions like features"),
    (wrong(similarity="dot"), ValueError, "'cosine', 'euclidean', got 'dot'"),
    (lambda: retrieval_scores(*data(), at_r=False).r_precision, ValueError, "ask for them by at_r=True"),
    (lambda: retrieval_scores(*data(), at_r=False).map_at_r, ValueError, "ask for them by at_r=True"),
)
