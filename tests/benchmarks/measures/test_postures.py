"""The retrieval protocol, against scikit-learn's ROC in plain loops."""

import numpy as np
import pytest
import torch
from refusals import refuses_each
from sklearn.metrics import roc_curve

from benchmarks.measures import postures
from benchmarks.measures.postures import (
    RetrievalLabels,
    mean_interpolated_roc,
    retrieval_report,
    retrieval_roc,
)

GRID = np.linspace(0, 1, 101)


def loop_curve(scores, positive):
    fpr, tpr, _ = roc_curve(positive, scores, drop_intermediate=False)
    # 1e-9 to the right: a grid point that meets a vertical step takes its upper end, whatever the rounding.
    return np.interp(GRID + 1e-9, fpr, tpr)


def loop_reference(features, mirrored, labels):
    curves = []
    for anchor, pos, neg, pos_flip, neg_flip in zip(
        labels.anchors, labels.pos_ids, labels.neg_ids, labels.pos_flips, labels.neg_flips, strict=True
    ):
        scores, truth = [], []
        for ids, flips, value in ((pos, pos_flip, 1), (neg, neg_flip, 0)):
            for i, flip in zip(ids, flips, strict=True):
                other = mirrored[i] if flip else features[i]
                a = features[anchor]
                scores.append(float(a @ other / np.linalg.norm(a) / np.linalg.norm(other)))
                truth.append(value)
        curves.append(loop_curve(np.array(scores), np.array(truth)))
    mean = np.mean(curves, axis=0)
    return mean, float(np.sum((mean[1:] + mean[:-1]) / 2) * 0.01)


def random_labels(rng, n, num_anchors, flips=True):
    pos = [rng.integers(0, n, rng.integers(1, 14)) for _ in range(num_anchors)]
    neg = [rng.integers(0, n, rng.integers(1, 30)) for _ in range(num_anchors)]
    pos_flips = [rng.integers(0, 2, len(p)) for p in pos] if flips else None
    neg_flips = [rng.integers(0, 2, len(p)) for p in neg] if flips else None
    return RetrievalLabels(rng.integers(0, n, num_anchors), pos, neg, pos_flips, neg_flips)


def auc(features, labels, mirrored=None):
    return retrieval_roc(features, labels, mirrored=mirrored).auc


@pytest.fixture
def case():
    """Features, mirrored features and labels that ask for both."""
    rng = np.random.default_rng(0)
    features, mirrored = rng.normal(size=(2, 60, 8)).astype(np.float32)
    return features, mirrored, random_labels(rng, 60, 17)


def test_matches_the_plain_loop(case, monkeypatch):
    features, mirrored, labels = case
    curve = retrieval_roc(features, labels, mirrored=mirrored)
    tpr, area = loop_reference(features.astype(np.float64), mirrored.astype(np.float64), labels)
    np.testing.assert_allclose(curve.tpr, tpr, atol=1e-6)
    assert curve.auc == pytest.approx(area, abs=1e-6)
    assert curve.anchor_auc.shape == (17,)
    assert curve.anchor_auc.mean() == pytest.approx(curve.auc)
    monkeypatch.setattr(postures, "_CHUNK_NUMBERS", 60)  # 7 pairs of 8 numbers
    np.testing.assert_array_equal(retrieval_roc(features, labels, mirrored=mirrored).tpr, curve.tpr)


@pytest.mark.parametrize("levels", [1, 2, 4, 1000])
def test_ties_match_scikit_learn(levels):
    rng = np.random.default_rng(levels)
    for _ in range(40):
        num_pos, num_neg = rng.integers(1, 12, 2)
        scores = rng.integers(0, levels, num_pos + num_neg) / 8.0
        positive = rng.permutation(np.arange(num_pos + num_neg) < num_pos)
        got = mean_interpolated_roc(scores[None], positive[None])[0]
        np.testing.assert_allclose(got, loop_curve(scores, positive), atol=1e-6)


def test_rows_of_any_length_are_apart():
    rng = np.random.default_rng(3)
    scores = [rng.normal(size=length) for length in (9, 4, 30)]
    positive = [np.arange(len(row)) < count for row, count in zip(scores, (2, 3, 8), strict=True)]
    together = mean_interpolated_roc(scores, positive)
    alone = [mean_interpolated_roc([row], [flags])[0] for row, flags in zip(scores, positive, strict=True)]
    np.testing.assert_array_equal(together, alone)


def test_worked_by_hand():
    # Ranks: positive, a tie of negative and positive, negative: (0, .5), a diagonal to (.5, 1), then flat.
    curve = mean_interpolated_roc([[3.0, 2.0, 2.0, 1.0]], [[True, False, True, False]])[0]
    np.testing.assert_allclose(curve[[0, 25, 50, 100]], [0.5, 0.75, 1.0, 1.0])


def test_ends_of_the_scale():
    features = np.array([[1, 0], [0.9, 0.1], [0, 1]])
    assert auc(features, RetrievalLabels([0], [[1]], [[2]])) == 1.0
    # The step at FPR 1 is upright: half a grid cell is left under it.
    assert auc(features, RetrievalLabels([0], [[2]], [[1]])) == pytest.approx(0.005)
    assert auc(features, RetrievalLabels([0], [[1]], [[1]])) == pytest.approx(0.5)
    assert auc(np.zeros((3, 3)), LABELS) == pytest.approx(0.5)  # no direction: every score is 0


def test_flips():
    features = np.array([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    mirrored = np.array([[0.0, 1.0], [1.0, 0.0], [5.0, 5.0]])
    labels = RetrievalLabels([0], [[1]], [[2]], [[1]], [[0]])
    assert auc(features, labels, mirrored=mirrored) == 1.0
    assert auc(features, RetrievalLabels([0], [[1]], [[2]]), mirrored=mirrored) < 0.1
    with pytest.raises(ValueError, match="ask for the mirror image, but mirrored is None"):
        auc(features, labels)
    with pytest.raises(ValueError, match="shape of features"):
        auc(features, labels, mirrored=mirrored[:2])


def test_invariances():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(50, 6)).astype(np.float32)
    labels = random_labels(rng, 50, 11, flips=False)
    curve = retrieval_roc(torch.from_numpy(features), labels)
    np.testing.assert_array_equal(curve.tpr, retrieval_roc(features, labels).tpr)
    scaled = retrieval_roc(features * rng.uniform(0.5, 2, (50, 1)).astype(np.float32), labels)
    np.testing.assert_allclose(scaled.tpr, curve.tpr, atol=1e-9)
    order = rng.permutation(50)
    place = np.argsort(order)
    moved = RetrievalLabels(
        place[labels.anchors], [place[p] for p in labels.pos_ids], [place[p] for p in labels.neg_ids]
    )
    np.testing.assert_allclose(retrieval_roc(features[order], moved).tpr, curve.tpr, atol=1e-12)
    extended = np.concatenate([np.zeros((7, 6), np.float32), features])
    np.testing.assert_array_equal(retrieval_roc(extended, labels.shifted(7)).tpr, curve.tpr)


def test_report_is_the_mean_of_categories():
    rng = np.random.default_rng(4)
    features = rng.normal(size=(60, 8))
    small, large = random_labels(rng, 60, 3, flips=False), random_labels(rng, 60, 21, flips=False)
    report = retrieval_report(features, {"small": small, "large": large})
    assert list(report.per_category) == ["small", "large"]
    assert report.per_category["small"] == auc(features, small)
    assert report.auc == pytest.approx((auc(features, small) + auc(features, large)) / 2)
    np.testing.assert_allclose(report.mean.tpr, (report.curves["small"].tpr + report.curves["large"].tpr) / 2)
    assert report.mean.anchor_auc.shape == (24,)
    np.testing.assert_allclose(report.mean.fpr, GRID, atol=1e-12)


test_bad_labels = refuses_each(
    lambda given: RetrievalLabels(*given),
    (([0, 1], [[1]], [[2], [3]]), ValueError, "one list for each of 2 anchors, found"),
    (([0], [[]], [[2]]), ValueError, "pos_ids must not be empty"),
    (([0], [[1]], [[-2]]), ValueError, "ids from 0, found -2"),
    (([0.5], [[1]], [[2]]), TypeError, "integer ids"),
    (([[0]], [[1]], [[2]]), ValueError, "one-dimensional"),
    (([0], [[1]], [[2]], [[1, 0]], [[1]]), ValueError, r"pos_flips\[0\] must have shape"),
    (([0], [[1]], [[2]], [[2]], [[1]]), ValueError, "0 and 1 only"),
    (([0], [[1]], [[2]], [[1], [1]]), ValueError, "with 2 lists of flips"),
)


LABELS = RetrievalLabels([0], [[1]], [[2]])


test_bad_input = refuses_each(
    lambda call, given: call(*given),
    (retrieval_roc, (np.eye(3)[:2], LABELS), "sample 2, but features has 2 rows"),
    (retrieval_roc, (np.eye(3), RetrievalLabels([], [], [])), "at least one anchor"),
    (retrieval_roc, (np.full((3, 3), np.nan), LABELS), "must be finite"),
    (retrieval_report, (np.eye(3), {}), "at least one category"),
    (retrieval_report, (np.eye(2), {"jump": LABELS}), "category 'jump': labels name sample 2"),
    (mean_interpolated_roc, ([[1.0, 2.0]], [[True]]), "share one shape"),
    (mean_interpolated_roc, ([[1, 2]] * 2, [[True, False], [True, True]]), "row 1 has 2 and 0"),
    (mean_interpolated_roc, ([[np.nan, 2.0]], [[True, False]]), "scores must not be NaN"),
    error=ValueError,
)
