"""The vote of the nearest: a case by hand, a plain loop, what is equal, what is wrong."""

import numpy as np
import pytest
import torch

from benchmarks.measures.voting import knn_vote


def plain_scores(query, gallery, labels, k):
    r = np.array([np.corrcoef(query, row)[0, 1] for row in gallery])
    nearest = np.argsort(-r, kind="stable")[:k]
    scores = np.zeros(labels.max() + 1)
    for c in range(len(scores)):
        mine = [i for i in nearest if labels[i] == c]
        scores[c] = len(mine) / k * sum(1 + r[i] for i in mine) / sum(1 + r[i] for i in nearest)
    return scores


@pytest.mark.parametrize("k", [1, 5, 20])
def test_as_a_plain_loop(k):
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(15, 6)), rng.normal(size=(20, 6)) + 3
    labels = rng.integers(0, 4, 20)
    found = knn_vote(queries, gallery, labels, k)
    scores = np.array([plain_scores(query, gallery, labels, k) for query in queries])
    np.testing.assert_array_equal(found.classes, scores.argmax(axis=1))
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    assert found.indices.shape == (15, k)


def test_by_hand():
    votes = knn_vote([[1.0, 0.0]], [[2.0, 0.0], [0.0, 5.0], [9.0, 1.0]], [0, 1, 1], k=3)
    # correlations 1, -1, 1: similarities 2, 0, 2; class 0: 1/3 * 1/2, class 1: 2/3 * 1/2
    np.testing.assert_allclose(votes.scores, [[1 / 6, 1 / 3]], atol=1e-6)
    assert votes.classes.tolist() == [1]


def test_of_equal_scores_the_nearest_wins():
    votes = knn_vote([[3.0, 0.0, 1.0]], [[3.0, 0.5, 0.0], [3.0, 0.0, 1.0]], [0, 1], k=1)
    assert votes.classes.tolist() == [1]
    labels = [1, 0]
    both = knn_vote([[0.0, 1.0]], [[0.0, 2.0], [0.0, 3.0]], labels, k=2)
    assert both.classes.tolist() == [labels[both.indices[0, 0]]]


def test_a_constant_row_is_uncorrelated():
    votes = knn_vote(torch.ones(1, 3), torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]]), [0, 1], k=2)
    np.testing.assert_allclose(votes.scores, [[0.25, 0.25]], atol=1e-6)


def with_correlation(r, size=400):
    """Two rows of that correlation."""
    a, b = np.linalg.qr(np.random.default_rng(0).normal(size=(size, 3)) * [0, 1, 1] + [1, 0, 0])[0].T[1:]
    return a, r * a + np.sqrt(1 - r**2) * b


@pytest.mark.parametrize("r", [0.29, 0.01])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("blank", [0.0, 0.1, 1 / 3, -7e4])
def test_a_blank_image_does_not_beat_a_true_correlation(r, dtype, blank):
    query, other = with_correlation(r)
    assert np.corrcoef(query, other)[0, 1] == pytest.approx(r)
    gallery = np.stack([np.full(400, blank), other]).astype(dtype)
    votes = knn_vote(query[None].astype(dtype), gallery, [0, 1], k=1)
    assert votes.classes.tolist() == [1]
    assert knn_vote(query[None], [gallery[0], -other], [0, 1], k=1).classes.tolist() == [0]  # 0 beats -r
    both = knn_vote(query[None].astype(dtype), gallery, [0, 1], k=2)
    np.testing.assert_allclose(both.scores, [[0.5 / (2 + r), 0.5 * (1 + r) / (2 + r)]], atol=1e-5)


def test_a_blank_query_is_as_near_to_everything():
    query, other = with_correlation(0.3)
    blanks = np.full((2, 400), 0.1) * [[1], [3]]
    votes = knn_vote(blanks, np.stack([query, other, blanks[1]]), [0, 1, 2], k=3)
    np.testing.assert_allclose(votes.scores, np.full((2, 3), 1 / 9), atol=1e-6)


def test_rounding_in_a_blank_row_is_no_direction():
    rng = np.random.default_rng(0)
    query, other = with_correlation(0.2)
    noisy = 0.7 * (1 + 2 * np.finfo(np.float64).eps * rng.choice([-1, 0, 1], 400))
    assert noisy.std() > 0
    votes = knn_vote(query[None], np.stack([noisy, other]), [0, 1], k=2)
    np.testing.assert_allclose(votes.scores, [[0.5 / 2.2, 0.5 * 1.2 / 2.2]], atol=1e-5)
    faint = 1000 + 1e-6 * other  # a faint image is one
    assert knn_vote(query[None], np.stack([noisy, faint]), [0, 1], k=1).classes.tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int16])
def test_tensors_of_other_types(dtype):
    rows = torch.tensor([[0.0, 2.0, 4.0], [3.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
    expected = knn_vote(rows[:1], rows, [1, 0, 1], k=3)
    votes = knn_vote(rows[:1].to(dtype), rows.to(dtype), [1, 0, 1], k=3)
    np.testing.assert_array_equal(votes.scores, expected.scores)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"k": 4}, ValueError, "k must be at most 3, the size of the gallery, got 4"),
        ({"k": 0}, ValueError, "k"),
        ({"gallery_labels": [0, 1]}, ValueError, r"gallery_labels must have shape \(3,\)"),
        ({"gallery_labels": [0, 1, -1]}, ValueError, "gallery_labels must be from 0"),
        ({"gallery_labels": [0.0, 1.0, 2.0]}, TypeError, "integers"),
        ({"query_features": np.ones((2, 5))}, ValueError, "query_features must have 4 columns"),
        ({"query_features": np.full((2, 4), np.nan)}, ValueError, "query_features"),
    ],
)
def test_what_is_wrong(change, error, text):
    rng = np.random.default_rng(1)
    good = {"query_features": rng.normal(size=(2, 4)), "gallery_features": rng.normal(size=(3, 4)),
            "gallery_labels": [0, 1, 1], "k": 2}  # fmt: skip
    with pytest.raises(error, match=text):
        knn_vote(**{**good, **change})
