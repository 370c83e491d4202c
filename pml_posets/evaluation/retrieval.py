"""Do a sample's nearest neighbours belong to its class? Recall@k, R-precision, MAP@R.

Neighbours are searched block by block, and of a block only a few numbers a query are kept: there is never a
matrix of N x N numbers, nor of N x R.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .._validation import as_class_ids, as_count, as_features, unit_rows
from ..neighbors.nearest import Backend, Method, search

Finder: TypeAlias = "Callable[[NDArray[np.int64], int], NDArray[np.int64]]"
"""Queries' (B,) row numbers and a length k, to (B, k) row numbers of their nearest samples, -1 for none."""

_BLOCK_NUMBERS = 1 << 23  # entries of the lists of neighbours that are held at once
_CHUNK_NUMBERS = 1 << 20  # and of those that the search works on at once
_LONG_LIST = 1024  # beyond, measuring pair by pair would take most of the time
_TILE_NUMBERS = 1 << 23  # distances at once where lists are that long


@dataclass(frozen=True, eq=False)
class RetrievalScores:
    """What each of Q queries found; the means are over the queries that could find something.

    Attributes:
        counted: (Q,) bool; False for a query whose class has no (other) member among the samples searched,
            which no ranking could find. Such queries are in no mean.
        num_relevant: (Q,) int64, R: how many samples of its class there were to find.
        hits: k to (Q,) bool, whether one of the k nearest has the query's class.
        r_precisions: (Q,) float64, share of its class among the R nearest; NaN where not counted. None if
            not asked for.
        average_precisions_at_r: (Q,) float64, likewise.
        average_precisions: (Q,) float64, over the whole list; None if no `depth` was asked for.
        reciprocal_ranks: (Q,) float64, 1 / rank of the first hit in the list, 0 without one; likewise.
    """

    counted: NDArray[np.bool_]
    num_relevant: NDArray[np.int64]
    hits: dict[int, NDArray[np.bool_]]
    r_precisions: NDArray[np.float64] | None = None
    average_precisions_at_r: NDArray[np.float64] | None = None
    average_precisions: NDArray[np.float64] | None = None
    reciprocal_ranks: NDArray[np.float64] | None = None

    @property
    def num_queries(self) -> int:
        """How many queries the means are over."""
        return int(self.counted.sum())

    @property
    def num_excluded(self) -> int:
        """How many queries had nothing to find."""
        return int((~self.counted).sum())

    @property
    def recall(self) -> dict[int, float]:
        """k to recall@k, in [0, 1]; NaN without any query."""
        return {k: self.mean(hits) for k, hits in self.hits.items()}

    @property
    def r_precision(self) -> float:
        """Mean of `r_precisions`, in [0, 1]; NaN without any query."""
        return self.mean(self.r_precisions)

    @property
    def map_at_r(self) -> float:
        """Mean of `average_precisions_at_r`, in [0, 1]; NaN without any query."""
        return self.mean(self.average_precisions_at_r)

    @property
    def mean_average_precision(self) -> float:
        """Mean of `average_precisions`, in [0, 1]; NaN without any query."""
        return self.mean(self.average_precisions)

    @property
    def mean_reciprocal_rank(self) -> float:
        """Mean of `reciprocal_ranks`, in [0, 1]; NaN without any query."""
        return self.mean(self.reciprocal_ranks)

    def mean(self, values: NDArray[Any] | None) -> float:
        """Mean over the counted queries of one of the (Q,) arrays here; an error if it was not asked for."""
        if values is None:
            raise ValueError("this was not measured: ask for it by at_r=True, or by depth")
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
    depth: int | None = None,
    similarity: Literal["cosine", "euclidean"] = "cosine",
    method: Method = "exact",
    backend: Backend = "auto",
    device: str | torch.device = "cpu",
) -> RetrievalScores:
    r"""Recall@k, R-precision and MAP@R of nearest-neighbour retrieval.

    With h_j = 1 where the j-th nearest sample has the query's class, else 0, and R the number of samples of
    that class that there are to find:

        recall@k     1 if h_1 + ... + h_k > 0, else 0
        R-precision  P(R), where P(j) = (h_1 + ... + h_j) / j
        AP@R         1/R sum_{j <= R} h_j P(j)

    each averaged over the queries. MAP@R rewards putting the class's samples first, R-precision only having
    them, recall@k having one.

    Args:
        features: (N, D) numbers, finite: the samples that are searched.
        labels: (N,) integers, their classes; any id is a class, -1 too. Compared as int64, exactly.
        ks: the k of recall@k, each from 1; more than there are samples is all of them. Default 1, 2, 4, 8.
        queries: (Q,) row numbers of the samples that ask, each of which is left out of its own list; None
            (default): all.
        query_features: (Q, D), a separate set of queries, which searches the whole of `features`.
        query_labels: (Q,) integers, their classes; needed exactly with `query_features`.
        at_r: whether to measure R-precision and MAP@R, for which lists are as long as the class. Default
            True.
        depth: also measure average precision and reciprocal rank in lists of this length; N for the whole
            ranking, which takes long. None (default): do not.
        similarity: "cosine" (default; a row of zeros is as near to all as at cosine .5), or "euclidean".
        method: "exact" (default) or "approximate", see `pml_posets.neighbors.search`.
        backend: "auto" (default), "faiss" or "torch", likewise.
        device: where to compute. Default "cpu".

    Returns:
        `RetrievalScores`. Queries that have nothing to find are left out and counted there. Of equally near
        samples the lower row number comes first; not so in lists of more than 1024, which are found by matrix
        products in float64, whatever `method` and `backend` say.

    Raises:
        TypeError: for labels that are no integers, features that are no numbers.
        ValueError: for shapes that do not fit, values that are not finite, row numbers out of range,
            unknown options.

    Source: recall@k as customary on CUB, Cars and Stanford Products; R-precision and MAP@R from Musgrave,
        Belongie, Lim, "A Metric Learning Reality Check" (ECCV 2020), section 3.2.
    Differs from the paper: in nothing known; pytorch-metric-learning's `AccuracyCalculator` gives the same
        numbers, but merges labels above 2^24, since it makes floats of them.

    Example:
        >>> features = [[0.0], [1.0], [1.5], [4.0]]
        >>> scores = retrieval_scores(features, [0, 0, 1, 1], ks=(1, 2), similarity="euclidean")
        >>> scores.recall
        {1: 0.5, 2: 0.75}
        >>> scores.r_precision, scores.num_excluded
        (0.5, 0)
    """
    if similarity not in ("cosine", "euclidean"):
        raise ValueError(f"similarity must be 'cosine' or 'euclidean', got {similarity!r}")
    prepare = unit_rows if similarity == "cosine" else as_features
    table = prepare(features, "features")
    classes = as_class_ids(labels, len(table))
    if (query_features is None) != (query_labels is None):
        raise ValueError("query_features and query_labels belong together: give both, or neither")
    if queries is not None and query_features is not None:
        raise ValueError("give queries (row numbers) or query_features (vectors), not both")
    if query_features is None:
        rows = np.arange(len(table)) if queries is None else np.asarray(queries)
        if rows.size and rows.dtype.kind not in "iu":
            raise TypeError(f"queries must be integer row numbers, got dtype {rows.dtype}")
        rows = rows.astype(np.int64)
        if rows.ndim != 1 or (rows.size and not 0 <= rows.min() <= rows.max() < len(table)):
            raise ValueError(f"queries must have shape (Q,) and lie in 0..{len(table) - 1}")
        query_classes = classes[rows]
    else:
        asked = prepare(query_features, "query_features")
        query_classes = as_class_ids(query_labels, len(asked), "query_labels")

    place = torch.device(device)

    def find(block: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        own = rows[block] if query_features is None else None
        if k > _LONG_LIST:
            return _long_lists(table, table[own] if own is not None else asked[block], own, k, place)
        who: dict[str, Any] = {"query_features": asked[block]} if own is None else {"queries": own}
        chunk = max(1, min(8192 if place.type == "cuda" else 1024, _CHUNK_NUMBERS // k))
        found = search(table, k, **who, method=method, backend=backend, device=place, chunk_size=chunk)
        return found.indices

    return score_rankings(
        find, classes, query_classes, ks, own=query_features is None, at_r=at_r, depth=depth
    )


def score_rankings(
    find: Finder,
    labels: NDArray[np.int64],
    query_labels: NDArray[np.int64],
    ks: Sequence[int] = (1,),
    *,
    own: bool = True,
    at_r: bool = True,
    depth: int | None = None,
) -> RetrievalScores:
    """What `retrieval_scores` measures, on whatever search.

    Args:
        find: see `Finder`; asked for blocks of queries, those with short lists first. It leaves a query out
            of its own list.
        labels: (N,) int64, classes of the samples searched.
        query_labels: (Q,) int64, those of the queries.
        ks: as in `retrieval_scores`.
        own: whether each query is one of the samples, and so not to be found. Default True.
        at_r: as in `retrieval_scores`.
        depth: as in `retrieval_scores`.

    Returns:
        `RetrievalScores`.

    Raises:
        TypeError, ValueError: for ks or a depth that are no integers from 1.

    Example:
        >>> find = lambda rows, k: np.array([[1, 2], [0, 2], [1, 0]])[rows, :k]
        >>> labels = np.array([5, 7, 5])
        >>> score_rankings(find, labels, labels, ks=(1, 2)).recall
        {1: 0.0, 2: 1.0}
    """
    ks = tuple(sorted({as_count(k, "every k of ks") for k in ks}))
    depth = None if depth is None else as_count(depth, "depth")
    num_queries, most = len(query_labels), max(1, len(labels) - own)
    codes = np.unique(np.concatenate([labels, query_labels]), return_inverse=True)[1]
    codes, query_codes = codes[: len(labels)], codes[len(labels) :]
    sizes = np.bincount(codes, minlength=int(query_codes.max(initial=-1)) + 1)
    relevant = (sizes[query_codes] - own).astype(np.int64)  # (Q,) R
    counted = relevant > 0

    def empty() -> NDArray[np.float64]:
        return np.full(num_queries, np.nan)

    precisions, precisions_at_r = (empty(), empty()) if at_r else (None, None)
    average, reciprocal = (None, None) if depth is None else (empty(), empty())
    hits = {k: np.zeros(num_queries, bool) for k in ks}
    lengths = np.full(num_queries, max((*ks, depth or 1)))
    if at_r:
        lengths = np.maximum(lengths, relevant)
    lengths = np.minimum(lengths, most)
    for rows, length in _blocks(np.flatnonzero(counted), lengths):
        index = find(rows, length)  # (B, length)
        same = (codes[index] == query_codes[rows][:, None]) & (index >= 0)
        for k in ks:
            hits[k][rows] = same[:, :k].any(axis=1)
        if precisions is not None and precisions_at_r is not None:
            r = relevant[rows]
            inside = same[:, : r.max()] & (np.arange(r.max()) < r[:, None])
            precisions[rows] = inside.sum(axis=1) / r
            precisions_at_r[rows] = _summed_precision(inside) / r
        if average is not None and reciprocal is not None:
            listed = same[:, :depth]
            average[rows] = _summed_precision(listed) / relevant[rows]
            reciprocal[rows] = listed.any(axis=1) / (listed.argmax(axis=1) + 1)
    return RetrievalScores(counted, relevant, hits, precisions, precisions_at_r, average, reciprocal)


def _blocks(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Row numbers in blocks of bounded lists, short lists first, each with the length of its longest."""
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    start = 0
    while start < len(rows):
        # The lists of a block all get the length of its last: how many rows still fit?
        room = np.arange(1, len(rows) - start + 1) * lengths[rows[start:]] <= _BLOCK_NUMBERS
        stop = start + max(1, int(room.sum()))
        yield np.sort(rows[start:stop]), int(lengths[rows[stop - 1]])
        start = stop


def _long_lists(
    table: NDArray[np.float32],
    asked: NDArray[np.float32],
    own: NDArray[np.int64] | None,
    k: int,
    place: torch.device,
) -> NDArray[np.int64]:
    """(B, k) row numbers of `table` by ascending distance from the (B, D) queries, by matrix products."""
    table = table if table.flags.writeable else table.copy()  # torch warns of a memory map
    parts = torch.from_numpy(table).to(place).split(max(1, _TILE_NUMBERS // table.shape[1]))
    step = max(1, _TILE_NUMBERS // len(table))
    lists = []
    for start in range(0, len(asked), step):
        query = torch.from_numpy(asked[start : start + step]).to(place).double()
        # |x|^2 - 2 q.x orders like the distance. (b, N)
        tile = torch.cat(
            [part.square().sum(1) - 2 * query @ part.T for part in map(torch.Tensor.double, parts)], 1
        )
        if own is not None:
            tile[
                torch.arange(len(tile), device=place), torch.from_numpy(own[start : start + step]).to(place)
            ] = torch.inf
        lists.append(tile.topk(k, dim=1, largest=False).indices.cpu().numpy())
    return np.concatenate(lists)


def _summed_precision(same: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(B, k) hits to (B,) sum over the hits of the precision there."""
    precision = np.cumsum(same, axis=1, dtype=np.int32) / np.arange(1, same.shape[1] + 1)
    return np.einsum("bk,bk->b", precision, same)
