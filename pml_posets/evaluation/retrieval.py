"""Do a sample's nearest neighbors belong to its class? Recall@k, R-precision, MAP@R.

Neighbors are searched block by block, and of a block only a few numbers a query are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .._validation import as_class_ids, as_count, as_features, as_row_numbers, check_option, unit_rows
from ..neighbors.nearest import Method, search

__all__ = ["RetrievalScores", "retrieval_scores"]

_BLOCK_NUMBERS = 1 << 23  # entries of the lists of neighbors that are held at once
_Similarity = Literal["cosine", "euclidean"]


@dataclass(frozen=True, eq=False)
class RetrievalScores:
    """What each of Q queries retrieved; means are over the queries that could retrieve something.

    With h_j = 1 where the j-th nearest sample has the query's class, else 0, and R samples of that class to
    retrieve:

        recall@k     1 if h_1 + ... + h_k > 0, else 0
        R-precision  P(R), where P(j) = (h_1 + ... + h_j) / j
        AP@R         1/R sum_{j <= R} h_j P(j)

    Attributes:
        counted: (Q,) bool; False for a query whose class has no (other) member among the samples searched.
            Such queries are in no mean.
        num_relevant: (Q,) int64, R: the number of (other) samples of its class.
        hits: k to (Q,) bool, whether one of the k nearest has the query's class.
        r_precisions: (Q,) float64, share of its class among the R nearest; NaN where not counted. None with
            at_r=False.
        average_precisions_at_r: (Q,) float64, likewise.
    """

    counted: NDArray[np.bool_]
    num_relevant: NDArray[np.int64]
    hits: dict[int, NDArray[np.bool_]]
    r_precisions: NDArray[np.float64] | None = None
    average_precisions_at_r: NDArray[np.float64] | None = None

    @property
    def num_queries(self) -> int:
        """How many queries the means are over."""
        return int(self.counted.sum())

    @property
    def num_excluded(self) -> int:
        """How many queries had nothing to retrieve."""
        return int((~self.counted).sum())

    @property
    def recall(self) -> dict[int, float]:
        """k to recall@k, in [0, 1]; NaN without any query."""
        return {k: self._mean(hits) for k, hits in self.hits.items()}

    @property
    def r_precision(self) -> float:
        """Mean of `r_precisions`, in [0, 1]; NaN without any query."""
        return self._mean(self.r_precisions)

    @property
    def map_at_r(self) -> float:
        """Mean of `average_precisions_at_r`, in [0, 1]; NaN without any query."""
        return self._mean(self.average_precisions_at_r)

    def _mean(self, values: NDArray[Any] | None) -> float:
        if values is None:
            raise ValueError("R-precision and MAP@R were not measured: ask for them by at_r=True")
        return float(values[self.counted].mean()) if self.num_queries else math.nan


def retrieval_scores(
    features: ArrayLike | torch.Tensor,
    labels: Any,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    queries: ArrayLike | None = None,
    query_features: ArrayLike | torch.Tensor | None = None,
    query_labels: Any = None,
    at_r: bool = True,
    similarity: _Similarity = "cosine",
    method: Method = "exact",
    device: str | torch.device = "cpu",
) -> RetrievalScores:
    """Recall@k, R-precision and MAP@R of nearest-neighbor retrieval, as `RetrievalScores` defines them.

    Args:
        features: (N, D) finite numbers, the samples that are searched.
        labels: (N,) integers, their classes; any id is a class, -1 too.
        ks: the k of recall@k, each from 1; beyond N it is N. Default 1, 2, 4, 8.
        queries: (Q,) row numbers of the queries, each left out of its own list. Default: all rows.
        query_features, query_labels: a separate set of queries, (Q, D), and their classes, (Q,).
        at_r: measure R-precision and MAP@R, for which lists are as long as the class. Default True.
        similarity: "cosine" (default; a row of zeros is as near to all as at cosine .5) or "euclidean".
        method, device: of `pml_posets.neighbors.search`. Default "exact", "cpu".

    Returns:
        `RetrievalScores`. Of equally near samples the lower row number comes first.

    Raises:
        TypeError, ValueError: for an argument of another type, shape or range; the message says which.

    Source: Musgrave, Belongie, Lim, "A Metric Learning Reality Check" (ECCV 2020), section 3.2.

    Example:
        >>> features = [[0.0], [1.0], [1.5], [4.0]]
        >>> retrieval_scores(features, [0, 0, 1, 1], ks=(1, 2), similarity="euclidean").recall
        {1: 0.5, 2: 0.75}
    """
    prepare = unit_rows if check_option(similarity, "similarity", _Similarity) == "cosine" else as_features
    ks = tuple(sorted({as_count(k, "every k of ks") for k in (ks if isinstance(ks, Iterable) else [ks])}))
    table = prepare(features, "features")
    classes = as_class_ids(labels, len(table))
    own = query_features is None
    if own != (query_labels is None):
        raise ValueError("query_features and query_labels belong together: give both, or neither")
    if own:
        asked: NDArray[Any] = np.arange(len(table))
        asked = asked if queries is None else as_row_numbers(queries, "queries", len(table))
        query_classes = classes[asked]
    elif queries is not None:
        raise ValueError("give queries (row numbers) or query_features (vectors), not both")
    else:
        asked = prepare(query_features, "query_features")
        query_classes = as_class_ids(query_labels, len(asked), "query_labels")

    def find(block: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        who: dict[str, Any] = {"queries" if own else "query_features": asked[block]}
        return search(table, k, **who, method=method, device=device).indices

    return _scores(find, classes, query_classes, own, ks, at_r)


def _scores(
    find: Callable[[NDArray[np.int64], int], NDArray[np.int64]],
    classes: NDArray[np.int64],
    query_classes: NDArray[np.int64],
    own: bool,
    ks: tuple[int, ...],
    at_r: bool,
) -> RetrievalScores:
    """From find(queries, k), their k nearest rows; own: they are samples and do not find themselves."""
    codes = np.unique(np.concatenate([classes, query_classes]), return_inverse=True)[1]
    codes, query_codes = codes[: len(classes)], codes[len(classes) :]
    relevant = np.bincount(codes, minlength=int(query_codes.max(initial=-1)) + 1)[query_codes] - own  # (Q,) R
    counted = relevant > 0
    hits = {k: np.zeros(len(relevant), bool) for k in ks}
    precisions, averages = np.full((2, len(relevant)), np.nan)
    lengths = np.maximum(max(ks, default=1), relevant if at_r else np.ones_like(relevant))
    for block, length in _blocks(np.flatnonzero(counted), np.minimum(lengths, len(classes) - own)):
        index = find(block, length)  # (B, length)
        same = (codes[index] == query_codes[block][:, None]) & (index >= 0)
        for k in ks:
            hits[k][block] = same[:, :k].any(axis=1)
        if at_r:
            r = relevant[block]
            same &= np.arange(length) < r[:, None]
            precision = np.cumsum(same, axis=1, dtype=np.int32) / np.arange(1, length + 1)
            precisions[block] = same.sum(axis=1) / r
            averages[block] = np.einsum("bk,bk->b", precision, same) / r
    of_r = (precisions, averages) if at_r else (None, None)
    return RetrievalScores(counted, relevant.astype(np.int64), hits, *of_r)


def _blocks(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Rows in blocks of bounded lists, short lists first, each with the length of its longest."""
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    start = 0
    while start < len(rows):
        room = np.arange(1, len(rows) - start + 1) * lengths[rows[start:]] <= _BLOCK_NUMBERS
        stop = start + max(1, int(room.sum()))
        yield np.sort(rows[start:stop]), int(lengths[rows[stop - 1]])
        start = stop
