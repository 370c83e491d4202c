"""Posture retrieval (Table 1): AUC over anchors that come with similar and dissimilar samples.

Source: Bautista et al. (CVPR 2017), section 4.1.1. Differs from the paper: in nothing known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.measures.anchors import RetrievalLabels
from pml_posets._validation import as_features

FPR_STEPS = 100
"""The grid of false-positive rates has FPR_STEPS + 1 points, 0, 0.01, ..., 1."""

Features = npt.ArrayLike | torch.Tensor
_GRID = np.arange(FPR_STEPS + 1) / FPR_STEPS
_CHUNK_NUMBERS = 2**20


@dataclass(frozen=True, eq=False)
class RetrievalCurve:
    """The averaged ROC curve of one category, or of several.

    Attributes:
        tpr: (101,) float64, true-positive rates at the false-positive rates 0, 0.01, ..., 1.
        auc: area under `tpr`, in [0, 1]; about .5 for random scores.
        anchor_auc: (A,) float64, area of each anchor's curve.
        fpr: (101,) float64, the grid.
    """

    tpr: npt.NDArray[np.float64]
    auc: float
    anchor_auc: npt.NDArray[np.float64]
    fpr: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """Curves of all categories.

    Attributes:
        curves: category to its `RetrievalCurve`.
        mean: mean of the categories, each with the same weight; `mean.auc` is the number of Table 1.
    """

    curves: dict[str, RetrievalCurve]
    mean: RetrievalCurve

    @property
    def auc(self) -> float:
        """Mean over the categories of their AUC."""
        return self.mean.auc

    @property
    def per_category(self) -> dict[str, float]:
        """Category to AUC."""
        return {name: curve.auc for name, curve in self.curves.items()}


def retrieval_roc(
    features: Features, labels: RetrievalLabels, *, mirrored: Features | None = None
) -> RetrievalCurve:
    """ROC of posture retrieval, averaged over the anchors of one category.

    For each anchor, positive and negative samples are ranked by their cosine with it (0 for a row of zeros).
    The true-positive rate is interpolated linearly on the grid of false-positive rates; where the curve rises
    vertically, its upper end counts, and samples of equal score share a diagonal segment. The area is that of
    the mean curve.

    Args:
        features: (N, D) real numbers; row i belongs to sample i.
        labels: ids are rows of `features`.
        mirrored: (N, D) features of the mirrored images; needed where `labels` asks for them. The anchor
            itself is never mirrored.

    Raises:
        ValueError: for features that are not finite or of another shape, ids out of range, missing mirrored
            features, no anchor.
    """
    return _roc(*_feature_pair(features, mirrored), labels)


def retrieval_report(
    features: Features, categories: Mapping[str, RetrievalLabels], *, mirrored: Features | None = None
) -> RetrievalResult:
    """`retrieval_roc` of every category, and the plain mean over categories; arguments are the same.

    Raises:
        ValueError: as `retrieval_roc`, with the category's name; or without any category.
    """
    if not categories:
        raise ValueError("categories must hold at least one category's labels, found none")
    pair = _feature_pair(features, mirrored)
    curves: dict[str, RetrievalCurve] = {}
    for name, labels in categories.items():
        try:
            curves[name] = _roc(*pair, labels)
        except ValueError as error:
            raise ValueError(f"category {name!r}: {error}") from error
    tpr = np.mean([curve.tpr for curve in curves.values()], axis=0)
    auc = float(np.mean([curve.auc for curve in curves.values()]))
    anchor_auc = np.concatenate([curve.anchor_auc for curve in curves.values()])
    return RetrievalResult(curves, RetrievalCurve(tpr, auc, anchor_auc, _GRID))


def mean_interpolated_roc(
    scores: npt.ArrayLike, positive: npt.ArrayLike, valid: npt.ArrayLike | None = None
) -> npt.NDArray[np.float64]:
    """(A, 101) true-positive rates of every row of scores at false-positive rates 0, 0.01, ..., 1.

    Args:
        scores: (A, L) floats, the larger the more similar.
        positive: (A, L) bool, which of them are positives.
        valid: (A, L) bool, which entries count. Default: all.

    Raises:
        ValueError: for different shapes, NaN among valid scores, a row without a positive or a negative.
    """
    scores = np.asarray(scores, dtype=np.float64)
    positive = np.asarray(positive, dtype=bool)
    valid = np.ones(scores.shape, dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    if scores.ndim != 2 or positive.shape != scores.shape or valid.shape != scores.shape:
        raise ValueError(
            "scores, positive and valid must share one shape (A, L), "
            f"got {scores.shape}, {positive.shape}, {valid.shape}"
        )
    if np.isnan(scores[valid]).any():
        raise ValueError("scores must not be NaN: does the similarity divide by the norm of a zero vector?")
    num_pos, num_neg = (positive & valid).sum(1), (~positive & valid).sum(1)
    if (num_pos == 0).any() or (num_neg == 0).any():
        row = int(np.flatnonzero((num_pos == 0) | (num_neg == 0))[0])
        raise ValueError(
            f"every anchor needs a positive and a negative, row {row} has {num_pos[row]} and {num_neg[row]}"
        )
    tp, fp = _steps(scores, positive, valid)
    # In whole numbers, so that a grid point that meets a step always takes its upper end.
    target = np.arange(FPR_STEPS + 1) * num_neg[:, None]  # (A, 101): fp x FPR_STEPS at the grid
    left = (fp[:, None, :] * FPR_STEPS <= target[:, :, None]).sum(2) - 1
    right = np.minimum(left + 1, fp.shape[1] - 1)
    tp_left, tp_right = np.take_along_axis(tp, left, 1), np.take_along_axis(tp, right, 1)
    fp_left, fp_right = np.take_along_axis(fp, left, 1), np.take_along_axis(fp, right, 1)
    share = (target - fp_left * FPR_STEPS) / np.maximum((fp_right - fp_left) * FPR_STEPS, 1)
    return (tp_left + share * (tp_right - tp_left)) / num_pos[:, None]


def _steps(
    scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_], valid: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(A, L + 1) counts of true and false positives, best score first; equal scores are one step."""
    order = np.lexsort((-scores, ~valid), axis=-1)  # what is not valid goes last and changes no count
    scores = np.take_along_axis(scores, order, 1)
    positive = np.take_along_axis(positive, order, 1)
    valid = np.take_along_axis(valid, order, 1)
    last = np.ones(scores.shape, dtype=bool)
    last[:, :-1] = (scores[:, 1:] != scores[:, :-1]) | ~valid[:, 1:]
    ends = np.where(last, np.arange(scores.shape[1]), scores.shape[1] - 1)
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]  # of each run of equal scores
    start = np.zeros((len(scores), 1), dtype=np.int64)
    counts = (np.cumsum(flags & valid, axis=1) for flags in (positive, ~positive))
    tp, fp = (np.concatenate([start, np.take_along_axis(count, ends, 1)], axis=1) for count in counts)
    return tp, fp


def _roc(
    features: npt.NDArray[np.float32], mirrored: npt.NDArray[np.float32] | None, labels: RetrievalLabels
) -> RetrievalCurve:
    if len(labels) == 0:
        raise ValueError("labels must hold at least one anchor, found none")
    if labels.max_id >= len(features):
        raise ValueError(
            f"labels name sample {labels.max_id}, but features has {len(features)} rows: are the ids those of"
            " another set, or must they be shifted by the category's offset?"
        )
    counts = np.array([len(p) + len(n) for p, n in zip(labels.pos_ids, labels.neg_ids, strict=True)])
    rows = [row for pair in zip(labels.pos_ids, labels.neg_ids, strict=True) for row in pair]
    ids = np.concatenate(rows)
    flips = np.concatenate([f for pair in zip(labels.pos_flips, labels.neg_flips, strict=True) for f in pair])
    if mirrored is None and flips.any():
        raise ValueError(
            f"{int(flips.sum())} of {len(flips)} pairs ask for the mirror image, but mirrored is None: give"
            " the features of the mirrored images, or labels without flips"
        )
    scores = _similarities(features, mirrored, np.repeat(labels.anchors, counts), ids, flips)
    valid = np.arange(int(counts.max())) < counts[:, None]
    table, positive = np.zeros(valid.shape), np.zeros(valid.shape, dtype=bool)
    table[valid] = scores
    positive[valid] = np.concatenate([np.full(len(row), i % 2 == 0) for i, row in enumerate(rows)])
    curves = mean_interpolated_roc(table, positive, valid)
    anchor_auc = (curves[:, 1:] + curves[:, :-1]).sum(1) / (2 * FPR_STEPS)  # trapezoidal rule
    return RetrievalCurve(curves.mean(0), float(anchor_auc.mean()), anchor_auc, _GRID)


def _similarities(
    features: npt.NDArray[np.float32],
    mirrored: npt.NDArray[np.float32] | None,
    anchors: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    flips: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """Cosines of pairs, some thousands at a time."""
    scores = np.empty(len(ids))
    step = max(1, _CHUNK_NUMBERS // features.shape[1])
    for start in range(0, len(ids), step):
        part = slice(start, start + step)
        mine, others = features[anchors[part]].astype(np.float64), features[ids[part]].astype(np.float64)
        if mirrored is not None:
            others[flips[part]] = mirrored[ids[part][flips[part]]]
        norm = np.sqrt(_dot(mine, mine) * _dot(others, others))
        scores[part] = _dot(mine, others) / np.where(norm > 0, norm, 1.0)
    return scores


def _dot(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.einsum("nd,nd->n", a, b)


def _feature_pair(
    features: Features, mirrored: Features | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    rows = as_features(features)
    mirror_rows = None if mirrored is None else as_features(mirrored, "mirrored")
    if mirror_rows is not None and mirror_rows.shape != rows.shape:
        raise ValueError(f"mirrored must have the shape of features, {rows.shape}, got {mirror_rows.shape}")
    return rows, mirror_rows
