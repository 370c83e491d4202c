"""The posture retrieval protocol of the Olympic Sports benchmark.

Every anchor comes with a few samples that are similar to it and a few that are not; the ROC curves of the
anchors are averaged on a common grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from .._validation import as_features

FPR_STEPS = 100
"""The false-positive-rate grid has FPR_STEPS + 1 points, 0, 0.01, ..., 1."""

Similarity = Literal["cosine", "dot", "euclidean"] | Callable[[npt.NDArray[Any], npt.NDArray[Any]], Any]
_CHUNK_NUMBERS = 2**20


@dataclass(frozen=True, eq=False)
class RetrievalLabels:
    """Anchors, each with the ids of samples that are similar (positive) and dissimilar (negative) to it.

    Args:
        anchors: (A,) integer ids of the anchors.
        pos_ids: A sequences of at least one id each.
        neg_ids: A sequences of at least one id each.
        pos_flips: like `pos_ids`, 1 where the mirror image of the sample is meant; None (default): nowhere.
        neg_flips: like `neg_ids`; None (default): nowhere.

    Raises:
        ValueError: when the lengths do not fit together, a list is empty or an id is negative.
        TypeError: when ids are not integers.

    Example:
        >>> labels = RetrievalLabels([0], pos_ids=[[1, 2]], neg_ids=[[3]])
        >>> len(labels), labels.num_pairs
        (1, 3)
    """

    anchors: npt.NDArray[np.int64]
    pos_ids: tuple[npt.NDArray[np.int64], ...]
    neg_ids: tuple[npt.NDArray[np.int64], ...]
    pos_flips: tuple[npt.NDArray[np.bool_], ...]
    neg_flips: tuple[npt.NDArray[np.bool_], ...]

    def __init__(
        self,
        anchors: npt.ArrayLike,
        pos_ids: Sequence[npt.ArrayLike],
        neg_ids: Sequence[npt.ArrayLike],
        pos_flips: Sequence[npt.ArrayLike] | None = None,
        neg_flips: Sequence[npt.ArrayLike] | None = None,
    ) -> None:
        ids = _ids(anchors, "anchors")
        object.__setattr__(self, "anchors", ids)
        for name, lists, flips in (("pos", pos_ids, pos_flips), ("neg", neg_ids, neg_flips)):
            rows, flags = _rows(lists, flips, len(ids), name)
            object.__setattr__(self, f"{name}_ids", rows)
            object.__setattr__(self, f"{name}_flips", flags)

    def __len__(self) -> int:
        return len(self.anchors)

    @property
    def num_pairs(self) -> int:
        """How many (anchor, id) pairs there are, positive and negative together."""
        return sum(map(len, self.pos_ids)) + sum(map(len, self.neg_ids))

    @property
    def max_id(self) -> int:
        """The largest id that occurs, -1 without anchors."""
        return max((int(a.max()) for a in (self.anchors, *self.pos_ids, *self.neg_ids) if len(a)), default=-1)

    def shifted(self, offset: int) -> RetrievalLabels:
        """The same labels with `offset` added to every id: from ids in a category to dataset indices."""
        return RetrievalLabels(
            self.anchors + offset,
            [row + offset for row in self.pos_ids],
            [row + offset for row in self.neg_ids],
            self.pos_flips,
            self.neg_flips,
        )


@dataclass(frozen=True, eq=False)
class RetrievalCurve:
    """The averaged ROC curve of one category, or of several.

    Attributes:
        fpr: (101,) float64, the grid.
        tpr: (101,) float64, true-positive rate, mean over the anchors (or over the categories).
        auc: area under `tpr`, in [0, 1]; about .5 for random scores.
        anchor_auc: (A,) float64, the area of every anchor's own curve; their mean is `auc` within a category.
    """

    fpr: npt.NDArray[np.float64]
    tpr: npt.NDArray[np.float64]
    auc: float
    anchor_auc: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """Curves of all categories, and their mean.

    Attributes:
        curves: category to its `RetrievalCurve`, in the order given.
        mean: the mean of the categories, each weighing the same; `mean.auc` is the benchmark's number.
    """

    curves: dict[str, RetrievalCurve]
    mean: RetrievalCurve

    @property
    def auc(self) -> float:
        """Mean over categories of their AUC."""
        return self.mean.auc

    @property
    def per_category(self) -> dict[str, float]:
        """Category to AUC."""
        return {name: curve.auc for name, curve in self.curves.items()}


def retrieval_roc(
    features: npt.ArrayLike | torch.Tensor,
    labels: RetrievalLabels,
    *,
    mirrored: npt.ArrayLike | torch.Tensor | None = None,
    similarity: Similarity = "cosine",
) -> RetrievalCurve:
    r"""ROC of posture retrieval, averaged over the anchors of one category.

    Per anchor the positive and negative samples are ranked by their similarity to it; its true-positive rate
    is interpolated linearly on the grid 0, 0.01, ..., 1 of false-positive rates (where the curve rises
    vertically, its upper end counts; samples of equal score share one, diagonal, segment); the curves are
    averaged, and the area under the mean by the trapezoidal rule is the AUC.

    Args:
        features: (N, D) float array or tensor, row i belongs to sample i.
        labels: ids are rows of `features`.
        mirrored: (N, D), features of the horizontally mirrored images. Needed where `labels` asks for mirror
            images; the anchor itself is never mirrored.
        similarity: "cosine" (default; 0 for a row of zeros), "dot", "euclidean" (negated distance), or a
            function of two (M, D) float64 arrays that gives M similarities, the larger the more similar.

    Returns:
        `RetrievalCurve` with the (101,) mean curve, its area and the area of each anchor.

    Raises:
        ValueError: features with NaN or of the wrong shape, ids out of range, mirror images asked for but not
            given, no anchor at all, unknown similarity.

    Source: Olympic Sports evaluation of Bautista et al. (CVPR 2017), section 4.1.1 and Table 1.
    Differs from the paper: in nothing known.

    Example:
        >>> import numpy as np
        >>> features = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.5]])
        >>> labels = RetrievalLabels([0], pos_ids=[[1, 2]], neg_ids=[[3]])
        >>> round(retrieval_roc(features, labels).auc, 3)  # one positive above the negative, one below
        0.502
    """
    rows, mirror_rows = _feature_pair(features, mirrored)
    return _roc(rows, mirror_rows, labels, similarity)


def retrieval_auc(
    features: npt.ArrayLike | torch.Tensor,
    labels: RetrievalLabels,
    *,
    mirrored: npt.ArrayLike | torch.Tensor | None = None,
    similarity: Similarity = "cosine",
) -> float:
    """Area under the mean curve of `retrieval_roc`, in [0, 1]; arguments and errors are the same.

    Source: Bautista et al. (CVPR 2017), section 4.1.1 and Table 1.
    Differs from the paper: in nothing known.

    Example:
        >>> retrieval_auc([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], RetrievalLabels([0], [[1]], [[2]]))
        1.0
    """
    return retrieval_roc(features, labels, mirrored=mirrored, similarity=similarity).auc


def retrieval_report(
    features: npt.ArrayLike | torch.Tensor,
    categories: Mapping[str, RetrievalLabels],
    *,
    mirrored: npt.ArrayLike | torch.Tensor | None = None,
    similarity: Similarity = "cosine",
) -> RetrievalResult:
    """`retrieval_roc` of every category and the plain mean over categories.

    Args:
        features: (N, D), all categories' samples in one array.
        categories: name to labels whose ids are rows of `features` (see `RetrievalLabels.shifted`).
        mirrored: (N, D), as in `retrieval_roc`.
        similarity: as in `retrieval_roc`.

    Returns:
        `RetrievalResult`; its `auc` is the number of the paper's Table 1.

    Raises:
        ValueError: as `retrieval_roc`, the category named; or no category at all.

    Source: Bautista et al. (CVPR 2017), Table 1.
    Differs from the paper: in nothing known.

    Example:
        >>> features = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]
        >>> good, bad = RetrievalLabels([0], [[1]], [[2]]), RetrievalLabels([0], [[2]], [[1]])
        >>> retrieval_report(features, {"good": good, "bad": bad}).per_category
        {'good': 1.0, 'bad': 0.005}
    """
    if not categories:
        raise ValueError("categories must hold at least one category's labels, found none")
    rows, mirror_rows = _feature_pair(features, mirrored)
    curves: dict[str, RetrievalCurve] = {}
    for name, labels in categories.items():
        try:
            curves[name] = _roc(rows, mirror_rows, labels, similarity)
        except ValueError as error:
            raise ValueError(f"category {name!r}: {error}") from error
    tpr = np.mean([curve.tpr for curve in curves.values()], axis=0)
    auc = float(np.mean([curve.auc for curve in curves.values()]))
    anchor_auc = np.concatenate([curve.anchor_auc for curve in curves.values()])
    return RetrievalResult(curves, RetrievalCurve(_grid(), tpr, auc, anchor_auc))


def mean_interpolated_roc(
    scores: npt.ArrayLike, positive: npt.ArrayLike, valid: npt.ArrayLike | None = None
) -> npt.NDArray[np.float64]:
    """ROC of every row of scores on the 101-point grid (the arithmetic of `retrieval_roc`, without features).

    Args:
        scores: (A, L) floats, the larger the more similar.
        positive: (A, L) bool, which of them are positives.
        valid: (A, L) bool, which entries count at all (default: all).

    Returns:
        (A, 101) float64, row a the true-positive rate of row a at false-positive rates 0, 0.01, ..., 1.

    Raises:
        ValueError: shapes that differ, NaN among valid scores, a row without a positive or a negative.

    Source: Bautista et al. (CVPR 2017), section 4.1.1. Differs from the paper: in nothing known.

    Example:
        >>> mean_interpolated_roc([[3.0, 2.0, 1.0]], [[True, False, True]])[0, [0, 50, 100]]
        array([0.5, 0.5, 1. ])
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
    num_pos = (positive & valid).sum(1)
    num_neg = (~positive & valid).sum(1)
    if (num_pos == 0).any() or (num_neg == 0).any():
        row = int(np.flatnonzero((num_pos == 0) | (num_neg == 0))[0])
        raise ValueError(
            f"every anchor needs a positive and a negative, row {row} has {num_pos[row]} and {num_neg[row]}"
        )
    # Best first; what does not count goes last and moves neither count.
    order = np.lexsort((-scores, ~valid), axis=-1)
    sorted_scores = np.take_along_axis(scores, order, 1)
    sorted_valid = np.take_along_axis(valid, order, 1)
    sorted_positive = np.take_along_axis(positive, order, 1)
    tp = np.cumsum(sorted_positive & sorted_valid, axis=1)  # (A, L)
    fp = np.cumsum(~sorted_positive & sorted_valid, axis=1)
    # Equal scores are one step: all of them take the counts at the end of their run.
    last = np.ones(scores.shape, dtype=bool)
    last[:, :-1] = (sorted_scores[:, 1:] != sorted_scores[:, :-1]) | ~sorted_valid[:, 1:]
    ends = np.where(last, np.arange(scores.shape[1]), scores.shape[1] - 1)
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    start = np.zeros((len(scores), 1), dtype=np.int64)
    tp = np.concatenate([start, np.take_along_axis(tp, ends, 1)], axis=1)  # (A, L + 1)
    fp = np.concatenate([start, np.take_along_axis(fp, ends, 1)], axis=1)
    # In whole numbers, so that a grid point that meets a step always takes its upper end.
    target = np.arange(FPR_STEPS + 1) * num_neg[:, None]  # (A, 101): fp x FPR_STEPS at the grid
    left = (fp[:, None, :] * FPR_STEPS <= target[:, :, None]).sum(2) - 1
    right = np.minimum(left + 1, fp.shape[1] - 1)
    tp_left, tp_right = np.take_along_axis(tp, left, 1), np.take_along_axis(tp, right, 1)
    fp_left, fp_right = np.take_along_axis(fp, left, 1), np.take_along_axis(fp, right, 1)
    share = (target - fp_left * FPR_STEPS) / np.maximum((fp_right - fp_left) * FPR_STEPS, 1)
    return (tp_left + share * (tp_right - tp_left)) / num_pos[:, None]


def _grid() -> npt.NDArray[np.float64]:
    return np.arange(FPR_STEPS + 1) / FPR_STEPS


def _roc(
    features: npt.NDArray[np.float32],
    mirrored: npt.NDArray[np.float32] | None,
    labels: RetrievalLabels,
    similarity: Similarity,
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
    scores = _similarities(features, mirrored, np.repeat(labels.anchors, counts), ids, flips, similarity)
    width = int(counts.max())
    valid = np.arange(width) < counts[:, None]
    table, positive = np.zeros(valid.shape), np.zeros(valid.shape, dtype=bool)
    table[valid] = scores
    positive[valid] = np.concatenate([np.full(len(row), i % 2 == 0) for i, row in enumerate(rows)])
    curves = mean_interpolated_roc(table, positive, valid)
    anchor_auc = (curves[:, 1:] + curves[:, :-1]).sum(1) / (2 * FPR_STEPS)  # trapezoidal rule
    return RetrievalCurve(_grid(), curves.mean(0), float(anchor_auc.mean()), anchor_auc)


def _similarities(
    features: npt.NDArray[np.float32],
    mirrored: npt.NDArray[np.float32] | None,
    anchors: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    flips: npt.NDArray[np.bool_],
    similarity: Similarity,
) -> npt.NDArray[np.float64]:
    measure = _MEASURES.get(similarity) if isinstance(similarity, str) else similarity
    if measure is None or not callable(measure):
        raise ValueError(f"similarity must be one of {sorted(_MEASURES)} or a function, got {similarity!r}")
    scores = np.empty(len(ids))
    step = max(1, _CHUNK_NUMBERS // features.shape[1])
    for start in range(0, len(ids), step):
        part = slice(start, start + step)
        others = features[ids[part]].astype(np.float64)  # (chunk, D)
        if mirrored is not None:
            others[flips[part]] = mirrored[ids[part][flips[part]]]
        found = np.asarray(measure(features[anchors[part]].astype(np.float64), others), dtype=np.float64)
        if found.shape != (len(others),):
            raise ValueError(
                f"similarity must give shape ({len(others)},) for that many pairs, got {found.shape}"
            )
        scores[part] = found
    return scores


def _dot(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.einsum("nd,nd->n", a, b)


def _cosine(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    norm = np.sqrt(_dot(a, a) * _dot(b, b))
    return _dot(a, b) / np.where(norm > 0, norm, 1.0)


def _euclidean(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return -np.sqrt(_dot(a - b, a - b))


_MEASURES: dict[str, Callable[[npt.NDArray[Any], npt.NDArray[Any]], Any]] = {
    "cosine": _cosine,
    "dot": _dot,
    "euclidean": _euclidean,
}


def _feature_pair(
    features: npt.ArrayLike | torch.Tensor, mirrored: npt.ArrayLike | torch.Tensor | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    rows = as_features(features)
    if mirrored is None:
        return rows, None
    mirror_rows = as_features(mirrored, "mirrored")
    if mirror_rows.shape != rows.shape:
        raise ValueError(f"mirrored must have the shape of features, {rows.shape}, got {mirror_rows.shape}")
    return rows, mirror_rows


def _ids(values: npt.ArrayLike, name: str) -> npt.NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {array.shape}")
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must hold integer ids, got dtype {array.dtype}")
    if array.size and array.min() < 0:
        raise ValueError(f"{name} must hold ids from 0, found {array.min()}")
    return array.astype(np.int64)


def _rows(
    lists: Sequence[npt.ArrayLike], flips: Sequence[npt.ArrayLike] | None, num_anchors: int, name: str
) -> tuple[tuple[npt.NDArray[np.int64], ...], tuple[npt.NDArray[np.bool_], ...]]:
    if len(lists) != num_anchors or (flips is not None and len(flips) != num_anchors):
        found = f"{len(lists)} lists" + ("" if flips is None else f" with {len(flips)} lists of flips")
        raise ValueError(f"{name}_ids must hold one list for each of {num_anchors} anchors, found {found}")
    rows = tuple(_ids(row, f"{name}_ids[{i}]") for i, row in enumerate(lists))
    empty = [i for i, row in enumerate(rows) if len(row) == 0]
    if empty:
        raise ValueError(
            f"{name}_ids must not be empty, but is for {len(empty)} anchors, the first is {empty[0]}"
        )
    if flips is None:
        return rows, tuple(np.zeros(len(row), dtype=bool) for row in rows)
    flags = []
    for i, (row, values) in enumerate(zip(rows, flips, strict=True)):
        array = np.asarray(values)
        if array.shape != row.shape:
            raise ValueError(f"{name}_flips[{i}] must have shape {row.shape} like its ids, got {array.shape}")
        if not np.isin(array, (0, 1)).all():
            raise ValueError(
                f"{name}_flips[{i}] must hold 0 and 1 only, found {np.unique(array)[:5].tolist()}"
            )
        flags.append(array.astype(bool))
    return rows, tuple(flags)
