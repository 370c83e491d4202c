"""Posture retrieval (Table 1): AUC over anchors that come with similar and dissimilar samples.

Source: Bautista et al. (CVPR 2017), section 4.1.1. Differs from the paper: in nothing known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    scores: Sequence[npt.ArrayLike] | npt.NDArray[Any], positive: Sequence[npt.ArrayLike] | npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """(A, 101) true-positive rates of every row of scores at false-positive rates 0, 0.01, ..., 1.

    Args:
        scores: A rows of floats, the larger the more similar.
        positive: A rows of bool of the same lengths, which of them are positives.

    Raises:
        ValueError: for different shapes, NaN among the scores, a row without a positive or a negative.
    """
    curves = []
    for row, (values, flags) in enumerate(zip(scores, positive, strict=True)):
        values, flags = np.asarray(values, np.float64), np.asarray(flags, bool)
        if values.ndim != 1 or flags.shape != values.shape:
            raise ValueError(
                f"a row of scores and of positive must share one shape (L,), got {values.shape}, "
                f"{flags.shape} in row {row}"
            )
        if np.isnan(values).any():
            raise ValueError(
                "scores must not be NaN: does the similarity divide by the norm of a zero vector?"
            )
        if flags.all() or not flags.any():
            found = f"{flags.sum()} and {(~flags).sum()}"
            raise ValueError(f"every anchor needs a positive and a negative, row {row} has {found}")
        curves.append(_interpolated_roc(values, flags))
    return np.stack(curves)


def _interpolated_roc(
    scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """(101,) true-positive rates of one row."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.nan))  # equal scores are one step
    tp, fp = (np.append(0, np.cumsum(flags[order])[ends]) for flags in (positive, ~positive))
    # In whole numbers, so that a grid point that meets a step always takes its upper end.
    target = np.arange(FPR_STEPS + 1) * fp[-1]  # fp x FPR_STEPS at the grid
    left = np.searchsorted(fp * FPR_STEPS, target, side="right") - 1
    right = np.minimum(left + 1, len(fp) - 1)
    share = (target - fp[left] * FPR_STEPS) / np.maximum((fp[right] - fp[left]) * FPR_STEPS, 1)
    return (tp[left] + share * (tp[right] - tp[left])) / tp[-1]


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
    positive = [np.arange(count) < len(p) for count, p in zip(counts, labels.pos_ids, strict=True)]
    curves = mean_interpolated_roc(np.split(scores, np.cumsum(counts)[:-1]), positive)
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
