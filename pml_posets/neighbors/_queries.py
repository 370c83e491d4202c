"""What a search is asked: which rows ask, and what each of them must not find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .._validation import as_codes, as_features, as_flag, as_mirrored, as_row_numbers, as_sources


@dataclass(frozen=True)
class Block:
    """B queries that are answered together."""

    views: list[Tensor]  # one or two (B, D): the queries, and their mirror images
    rows: Tensor | None  # (B,) int64 dataset indices of the queries; None if they are not of the dataset
    own: Tensor | None  # (B,) int64 index that each must not find; None: they may find themselves
    codes: Tensor | None  # (B,) int64 source that each must not find; None: no rule
    sources: Tensor | None  # (N,) int64 sources of the dataset, beside codes
    excluded: NDArray[np.int64]  # (B,) how many samples each must not find

    def take(self, which: Tensor) -> Block:
        """Some of the queries."""
        rows, own, codes = (None if x is None else x[which] for x in (self.rows, self.own, self.codes))
        views, excluded = [view[which] for view in self.views], self.excluded[which.cpu().numpy()]
        return Block(views, rows, own, codes, self.sources, excluded)

    def excludes(self, index: Tensor) -> Tensor:
        """(B, n) bool, which of the samples (B, n) must not be found, or are none (-1)."""
        wrong = index < 0
        if self.own is not None:
            wrong |= index == self.own[:, None]
        if self.codes is not None and self.sources is not None:
            wrong |= self.sources[index] == self.codes[:, None]
        return wrong

    def exclude(self, tile: Tensor, start: int) -> None:
        """Set the distances (B, n) to samples start..start + n - 1 that must not be found to infinity."""
        stop = start + tile.shape[1]
        if self.codes is not None and self.sources is not None:
            tile.masked_fill_(self.codes[:, None] == self.sources[None, start:stop], torch.inf)
        if self.own is not None:
            inside = (self.own >= start) & (self.own < stop)
            tile[inside.nonzero()[:, 0], self.own[inside] - start] = torch.inf


@dataclass(frozen=True)
class Queries:
    """All queries of a search."""

    vectors: NDArray[np.float32]  # (V, D), the rows that ask are among them
    mirrors: NDArray[np.float32] | None  # (V, D) features of their mirror images
    rows: NDArray[np.int64]  # (Q,) rows of vectors that ask
    in_dataset: bool  # whether vectors are the dataset
    exclude_self: bool  # whether a sample must not find itself
    codes: NDArray[np.int64] | None  # (N,) sources of the dataset
    query_codes: NDArray[np.int64] | None  # (Q,) sources of the queries
    excluded: NDArray[np.int64]  # (Q,) how many samples each must not find

    @classmethod
    def of(
        cls,
        table: NDArray[np.float32],
        queries: ArrayLike | None,
        query_features: Any,
        mirrored: Any,
        sources: Any,
        query_sources: Any,
        exclude_self: bool,
    ) -> Queries:
        """From the arguments of `search`, checked."""
        if queries is not None and query_features is not None:
            raise ValueError("give queries (dataset indices) or query_features (vectors), not both")
        inside = query_features is None
        vectors = table if inside else as_features(query_features, "query_features")
        if vectors.shape[1] != table.shape[1]:
            raise ValueError(
                f"query_features must have {table.shape[1]} dimensions like features, got {vectors.shape}"
            )
        rows = np.arange(len(vectors))
        if queries is not None:
            rows = as_row_numbers(queries, "queries", len(table))
        mirrors = as_mirrored(mirrored, vectors)
        codes, query_codes = _source_codes(sources, query_sources, len(table), rows, inside)
        excluded = np.full(len(rows), int(as_flag(exclude_self, "exclude_self") and inside))
        if codes is not None and query_codes is not None:
            excluded = np.bincount(codes, minlength=int(query_codes.max(initial=0)) + 1)[query_codes]
        return cls(vectors, mirrors, rows, inside, exclude_self, codes, query_codes, excluded)

    def block(self, which: NDArray[np.int64], device: torch.device) -> Block:
        """Some of the queries, on the device."""

        def put(array: NDArray[Any] | None) -> Tensor | None:
            return None if array is None else torch.from_numpy(array).to(device)

        picked = self.rows[which]
        views = [
            torch.from_numpy(x[picked]).to(device) for x in (self.vectors, self.mirrors) if x is not None
        ]
        rows = put(picked) if self.in_dataset else None
        codes = None if self.query_codes is None else self.query_codes[which]
        own = rows if self.exclude_self else None
        return Block(views, rows, own, put(codes), put(self.codes), self.excluded[which])


def _source_codes(
    sources: Any, query_sources: Any, num_samples: int, rows: NDArray[np.int64], in_dataset: bool
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """Sources as consecutive numbers, of the samples and of the queries."""
    if query_sources is not None and (sources is None or in_dataset):
        raise ValueError(
            "query_sources need sources and query_features: samples of the dataset have their own"
        )
    if sources is None or in_dataset:
        codes = as_codes(sources, num_samples)
        return codes, None if codes is None else codes[rows]
    if query_sources is None:
        raise ValueError("sources leave out the query's own source: query_features need query_sources too")
    names = as_sources(sources, num_samples)
    query_names = as_sources(query_sources, len(rows), "query_sources", " like query_features")
    if (names.dtype.kind in "US") != (query_names.dtype.kind in "US"):
        raise TypeError(
            f"sources and query_sources must be of one type, got {names.dtype} and {query_names.dtype}"
        )
    numbers = np.unique(np.concatenate([names, query_names]), return_inverse=True)[1].astype(np.int64)
    return numbers[:num_samples], numbers[num_samples:]
