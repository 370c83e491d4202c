"""Nearest neighbors, exact or approximate.

A search has two steps. A backend (faiss, or tiles of matrix products in torch) proposes a few more candidates
than were asked for. A shared step measures those by plain differences, keeps the nearer of a sample and its
mirror image, and sorts by (distance, index). Where rounding or ties leave a doubt, it asks again in double
precision, and at last measures all samples. That is why the backends agree. No step holds an N x N matrix.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .._validation import as_count, as_device, as_features, check_option
from ..distributed.sharing import gather_shares, leads_work, shares_work
from ._measuring import Answer, measure, measure_all
from ._proposals import (
    MAX_EXCLUDED,
    FaissProposer,
    TileProposer,
    all_pairs,
    around_center,
    faster_method,
    principal_directions,
    row_squares,
)
from ._queries import Block, Queries

__all__ = ["Backend", "Method", "Neighbors", "search"]

Method = Literal["auto", "exact", "approximate"]
Backend = Literal["auto", "faiss", "torch"]


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The answer of a search; row q belongs to query q.

    Attributes:
        indices: (Q, k) int64, dataset indices by ascending distance; -1 where no further neighbor exists.
        distances: (Q, k) float32, Euclidean (not squared), ascending; inf where the index is -1.
        flips: (Q, k) bool, True where the query's mirror image was the nearer; None without mirror images.

    Example:
        >>> search([[0.0], [1.0], [3.0]], k=1).indices.ravel().tolist()
        [1, 0, 1]
    """

    indices: NDArray[np.int64]
    distances: NDArray[np.float32]
    flips: NDArray[np.bool_] | None = None


def search(
    features: ArrayLike | Tensor,
    k: int,
    *,
    queries: ArrayLike | None = None,
    query_features: ArrayLike | Tensor | None = None,
    mirrored: ArrayLike | Tensor | None = None,
    sources: Sequence[Any] | NDArray[Any] | None = None,
    query_sources: Sequence[Any] | NDArray[Any] | None = None,
    exclude_self: bool = True,
    method: Method = "exact",
    backend: Backend = "auto",
    device: str | torch.device = "cpu",
    chunk_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Neighbors:
    """Find the k nearest samples of each query by Euclidean distance.

    Inside `pml_posets.distributed.shared_work` every rank answers some of the queries, and gets all answers.

    Args:
        features: (N, D) the samples to search among.
        k: neighbors per query, from 1. Where fewer exist, the rest is -1 (index) and inf (distance).
        queries: (Q,) dataset indices of the queries. None (default): all samples.
        query_features: (Q, D) queries that are no samples of the dataset, instead.
        mirrored: features of the queries' mirror images, (N, D), or (Q, D) beside query_features; a pair's
            distance is then min(|f_q - f_j|, |m_q - f_j|).
        sources: (N,) ints or strings; samples of the query's own source (itself among them) are left out.
        query_sources: (Q,) the sources of query_features; needed exactly when both of those are given.
        exclude_self: leave a sample out of its own list (by index: equal copies of it stay). Default True.
        method: "exact" (default); "approximate" measures 2 k + 64 candidates, the nearest in up to 512
            principal directions (for more than 256, and from 8,192 samples on); "auto": approximate from
            20,000 samples and queries of 1,024 dimensions on, where it is faster.
        backend: "faiss", "torch" or "auto" (default: faiss on a CPU, torch elsewhere).
        device: where to compute. Default "cpu".
        chunk_size: queries at once, which take memory. None (default): 1024 on a CPU, 8192 on a GPU.
        seed: of the approximate search. Default 0.
        progress: show a progress bar. Default False.

    Returns:
        Neighbors, by (distance, index); a pair that is as near without mirroring is not flipped.

    Raises:
        TypeError, ValueError: for an argument of another type, shape or range; the message says which.

    Example:
        >>> search([[0.0], [1.0], [1.5], [9.0]], k=2, sources=["a", "a", "b", "c"]).distances[0].tolist()
        [1.5, 9.0]
    """
    table, k, place = as_features(features), as_count(k, "k"), as_device(device)
    asked = Queries.of(table, queries, query_features, mirrored, sources, query_sources, exclude_self)
    if check_option(method, "method", Method) == "auto":
        method = faster_method(len(table), len(asked.rows), table.shape[1])
    use_faiss = _uses_faiss(backend, place)
    default = 8192 if place.type == "cuda" else 1024
    chunk_size = default if chunk_size is None else as_count(chunk_size, "chunk_size")
    make = partial(_Finder, table, k, method == "approximate", use_faiss, place, seed)
    with torch.no_grad(), _full_precision(place):
        return _found(asked, make, chunk_size, progress)


def _found(asked: Queries, make: Callable[[], _Finder], chunk_size: int, progress: bool) -> Neighbors:
    """The answer to all queries, on ranks that share work put together from those of each."""
    order = np.argsort(asked.excluded, kind="stable")  # queries that need equally long lists go together

    def answer(part: range) -> list[NDArray[Any]]:
        finder, which = make(), order[part.start : part.stop]
        if len(which) == len(finder.table) and not shares_work():
            finder.join(asked)
        return finder.find_all(asked, which, chunk_size, progress)

    answers = gather_shares(len(order), chunk_size, answer)
    indices, distances, flips = (rows[np.argsort(order)] for rows in answers)
    return Neighbors(indices, distances, None if asked.mirrors is None else flips)


class _Finder:
    """Proposes and measures candidates, and asks again where rounding or ties may have misled a proposal."""

    def __init__(
        self,
        table: NDArray[np.float32],
        k: int,
        approximate: bool,
        use_faiss: bool,
        device: torch.device,
        seed: int,
    ) -> None:
        with warnings.catch_warnings():  # a memory map is read-only, and is only read
            warnings.filterwarnings("ignore", message=".*not writable.*")
            self.table = torch.from_numpy(table).to(device)
        near, self.center, squares = around_center(self.table)
        self.max_square = float(squares.max())
        self.exact = TileProposer(near, squares)
        self.directions = principal_directions(near, seed) if approximate else None
        self.k = k
        self.width = min(len(table), k + max(8, k // 4) if self.directions is None else 2 * k + 64)
        searched = near if self.directions is None else near @ self.directions
        self.proposer: TileProposer | FaissProposer = self.exact
        if use_faiss:
            self.proposer = FaissProposer(searched.cpu().numpy(), device)
        elif self.directions is not None:
            self.proposer = TileProposer(searched, row_squares(searched))
        self.joined: tuple[Tensor, Tensor] | None = None

    def _centered(self, rows: Tensor) -> Tensor:
        return rows if self.center is None else rows - self.center

    def join(self, asked: Queries) -> None:
        """Let all samples propose for each other at once, where faiss on a CPU can and all of them ask."""
        proposer = self.proposer
        if not isinstance(proposer, FaissProposer) or proposer.on_gpu or not asked.in_dataset:
            return
        if asked.excluded.max() <= MAX_EXCLUDED:
            self.joined = all_pairs(proposer.table, self.width, asked.codes, asked.exclude_self)

    def find_all(
        self, asked: Queries, which: NDArray[np.int64], chunk_size: int, progress: bool
    ) -> list[NDArray[Any]]:
        """Indices, distances and flips of some queries, chunk by chunk."""
        shape = (0, self.k)
        parts = [(np.zeros(shape, np.int64), np.zeros(shape, np.float32), np.zeros(shape, bool))]
        for start in _starts(len(which), chunk_size, progress):
            block = asked.block(which[start : start + chunk_size], self.table.device)
            index, squares, flip = self.find(block)
            parts.append((index.cpu().numpy(), squares.sqrt().cpu().numpy(), flip.cpu().numpy()))
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def find(self, block: Block) -> Answer:
        """The k nearest of each query."""
        proposals = [self._propose(block, number) for number in range(len(block.views))]
        return self._measured(block, proposals, self.directions is not None, self._find_in_double)

    def _propose(self, block: Block, number: int) -> tuple[Tensor, Tensor]:
        if self.joined is not None and number == 0:
            return self.joined[0][block.rows], self.joined[1][block.rows]
        view = self._centered(block.views[number])
        if isinstance(self.proposer, FaissProposer) and not self.proposer.can(block, self.width):
            return self.exact.propose(view, block, self.width)
        if self.directions is not None:
            view = view @ self.directions
        return self.proposer.propose(view, block, self.width)

    def _find_in_double(self, block: Block) -> Answer:
        views = [self._centered(view) for view in block.views]
        proposals = [self.exact.propose(view, block, 4 * self.width, torch.float64) for view in views]
        return self._measured(block, proposals, False, lambda b: measure_all(self.table, b, self.k))

    def _measured(
        self,
        block: Block,
        proposals: list[tuple[Tensor, Tensor]],
        approximate: bool,
        find: Callable[[Block], Answer],
    ) -> Answer:
        """The nearest of the candidates; queries of which one may be missing are answered by `find`."""
        answer = measure(self.table, block.views, [index for index, _ in proposals], self.k)
        wanted = torch.from_numpy(np.minimum(self.k, len(self.table) - block.excluded)).to(self.table.device)
        if approximate:
            unsure = (answer[0] >= 0).sum(1) < wanted
        elif proposals[0][0].shape[1] == len(self.table):
            return answer
        else:  # one as near as the last of the answer may be no candidate, by rounding or a tie
            last = answer[1].gather(1, (wanted - 1).clamp_min(0)[:, None])[:, 0]
            slack = max(8.0, self.table.shape[1] ** 0.5)
            unsure = torch.zeros_like(wanted, dtype=torch.bool)
            for view, (_, best) in zip(block.views, proposals, strict=True):
                length = self._centered(view).square().sum(1)
                rounding = 2 * torch.finfo(best.dtype).eps * slack * (length + self.max_square)
                unsure |= last * (1 + 4 * torch.finfo(torch.float32).eps * slack) >= best[:, -1] - rounding
            unsure &= wanted > 0
        if unsure.any():
            which = unsure.nonzero()[:, 0]
            for old, new in zip(answer, find(block.take(which)), strict=True):
                old[which] = new
        return answer


def _starts(number: int, step: int, progress: bool) -> Iterable[int]:
    """The first of each chunk, with a progress bar on one rank."""
    starts = range(0, number, step)
    if not progress or not leads_work():
        return starts
    from tqdm.auto import tqdm

    return tqdm(starts, desc="neighbors", unit="chunk")


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Neither TF32 nor autocast inside, whatever the caller trains with."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _uses_faiss(backend: str, device: torch.device) -> bool:
    check_option(backend, "backend", Backend)
    if backend == "faiss" and device.type == "cuda":
        import faiss

        if not hasattr(faiss, "StandardGpuResources"):
            raise ValueError(f'this faiss has no GPU support, got device="{device}": use backend="torch"')
    return backend == "faiss" or (backend == "auto" and device.type == "cpu")
