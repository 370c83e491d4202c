"""Candidates for nearest neighbors, by faiss or by tiles of matrix products, in all dimensions or few."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._measuring import product
from ._queries import Block

MAX_EXCLUDED = 1024  # faiss lists are made longer by what a query must not find, up to this many
_MAX_GPU_LIST = 2048  # the longest list that a faiss index on a GPU returns
_JOIN_ROWS = 1264  # rows of a tile of `all_pairs`; no power of two, whose transposed tiles collide in caches
MIN_REDUCED_SAMPLES = 8_192  # below this, looking at samples in full is faster
MAX_REDUCED_DIM = 512
_VARIANCE_KEPT = 0.95
_MAX_SQUARE = 1e36  # squared distances beyond may overflow; below its inverse they may be 0
_FAR = 4.0  # squared distance to the origin, over the variance, from which features are centered
_MIN_AUTO = 20_000  # samples and queries from which "auto" is approximate ...
_MIN_AUTO_DIM = 1024  # ... for features this long: it is then faster even if no direction is negligible


class TileProposer:
    """Exhaustive search by tiles of |x|^2 - 2 q.x in torch, the lists merged from tile to tile."""

    def __init__(self, table: Tensor, squares: Tensor) -> None:
        self.table, self.squares = table, squares
        self.tile = 2**28 if table.device.type == "cuda" else 2**24  # numbers held at once

    def propose(
        self, view: Tensor, block: Block, width: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """(B, D) queries to (B, width) indices (-1: none) and rounded squared distances (inf: none)."""
        view = view.to(dtype)
        width = min(width, len(self.table))
        best = view.new_full((len(view), width), torch.inf)
        index = torch.full((len(view), width), -1, dtype=torch.int64, device=view.device)
        step = max(width, self.tile // max(1, len(view)))
        for start in range(0, len(self.table), step):
            part = self.table[start : start + step].to(dtype)
            squares = self.squares[start : start + step] if dtype == torch.float32 else part.square().sum(1)
            tile = torch.addmm(squares, view, part.T, alpha=-2)  # (B, step), |q|^2 still missing
            block.exclude(tile, start)
            value, column = tile.topk(min(width, len(part)), dim=1, largest=False)
            column = torch.where(value.isinf(), -1, column + start)
            best, pick = torch.cat([best, value], 1).topk(width, dim=1, largest=False)
            index = torch.cat([index, column], 1).gather(1, pick)
        return index, best + view.square().sum(1, keepdim=True)


class FaissProposer:
    """Search by faiss; lists are longer by the samples that a query must not find, which are then dropped.

    On a CPU it reads the table itself; on a GPU an index copies it.
    """

    def __init__(self, table: NDArray[np.float32], device: torch.device) -> None:
        import faiss

        self.table, self.on_gpu = np.ascontiguousarray(table), device.type == "cuda"
        self.index: Any = None
        if self.on_gpu:
            self.resources = faiss.StandardGpuResources()
            flat = faiss.IndexFlatL2(table.shape[1])
            self.index = faiss.index_cpu_to_gpu(self.resources, device.index or 0, flat)
            self.index.add(self.table)

    def propose(self, view: Tensor, block: Block, width: int) -> tuple[Tensor, Tensor]:
        """(B, D) queries to (B, width) indices (-1: none) and rounded squared distances (inf: none)."""
        import faiss

        length = min(width + int(block.excluded.max(initial=0)), len(self.table))
        rows = np.ascontiguousarray(view.cpu().numpy())
        found = faiss.knn(rows, self.table, length) if self.index is None else self.index.search(rows, length)
        best, index = (torch.from_numpy(part).to(view.device) for part in found)
        wrong = block.excludes(index)
        front = wrong.byte().argsort(dim=1, stable=True)[:, : min(width, length)]  # the others, in order
        best, index = best.masked_fill_(wrong, torch.inf), index.masked_fill_(wrong, -1)
        return index.gather(1, front), best.gather(1, front)

    def can(self, block: Block, width: int) -> bool:
        """Whether lists of the length that these queries need are possible and worth it."""
        excluded = int(block.excluded.max(initial=0))
        return excluded <= MAX_EXCLUDED and not (self.on_gpu and width + excluded > _MAX_GPU_LIST)


def all_pairs(
    table: NDArray[np.float32], width: int, codes: NDArray[np.int64] | None, exclude_self: bool
) -> tuple[Tensor, Tensor]:
    """(N, width) candidates of every row: indices (-1: none) and rounded squared distances (inf: none).

    Each product of two blocks of rows serves the rows of both, which halves the work of N searches. The lists
    are heaps of faiss.
    """
    import faiss

    num_samples, width = len(table), min(width, len(table))
    rows = torch.from_numpy(table)
    squares = row_squares(rows)
    best = np.empty((num_samples, width), np.float32)
    index = np.empty((num_samples, width), np.int64)
    heaps: Any = faiss.float_maxheap_array_t()
    heaps.nh, heaps.k, heaps.val, heaps.ids = num_samples, width, faiss.swig_ptr(best), faiss.swig_ptr(index)
    heaps.heapify()
    for start in range(0, num_samples, _JOIN_ROWS):
        stop = min(start + _JOIN_ROWS, num_samples)
        row, column = _excluded_pairs(start, stop, codes, exclude_self)
        for first in range(start, num_samples, _JOIN_ROWS):
            last = min(first + _JOIN_ROWS, num_samples)
            tile = product(rows[start:stop], rows[first:last])
            torch.add(squares[first:last], tile, alpha=-2, out=tile).add_(squares[start:stop, None])
            inside = slice(*np.searchsorted(column, [first, last]))
            tile.numpy()[row[inside] - start, column[inside] - first] = np.inf
            heaps.addn(last - first, faiss.swig_ptr(tile.numpy()), first, start, stop - start)
            if first >= stop:
                turned = tile.T.contiguous().numpy()
                heaps.addn(stop - start, faiss.swig_ptr(turned), start, first, last - first)
    heaps.reorder()
    best[index < 0] = np.inf
    return torch.from_numpy(index), torch.from_numpy(best)


def _excluded_pairs(
    start: int, stop: int, codes: NDArray[np.int64] | None, exclude_self: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows from start to stop and the columns from start on that each must not find, by ascending column."""
    rows = np.arange(start, stop if exclude_self or codes is not None else start)
    if codes is None:
        return rows, rows
    order = np.argsort(codes, kind="stable")
    begin = np.searchsorted(codes[order], codes[rows])
    sizes = np.searchsorted(codes[order], codes[rows], side="right") - begin
    row = np.repeat(rows, sizes)
    within = np.arange(row.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    column = order[np.repeat(begin, sizes) + within]
    kept = np.flatnonzero(column >= start)
    kept = kept[np.argsort(column[kept], kind="stable")]
    return row[kept], column[kept]


def faster_method(num_samples: int, num_queries: int, num_dims: int) -> Literal["exact", "approximate"]:
    """The method that "auto" stands for: approximate only where that was measured to save time."""
    large = min(num_samples, num_queries) >= _MIN_AUTO and num_dims >= _MIN_AUTO_DIM
    return "approximate" if large else "exact"


def row_squares(table: Tensor) -> Tensor:
    """(N, D) to (N,) squared lengths."""
    step = max(1, 2**24 // table.shape[1])
    return torch.cat([part.square().sum(1) for part in table.split(step)])


def around_center(table: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """(N, D) rows to search in, the center (D,) that was taken from them or None, their squared lengths (N,).

    |x|^2 - 2 x.y loses the digits that |x|^2 takes up, so that rows far from the origin for their spread are
    centered on the mean of a sample of them.
    """
    squares = row_squares(table)
    largest = float(squares.max())
    if not largest < _MAX_SQUARE:
        raise ValueError(
            f"features must be shorter than {_MAX_SQUARE**0.5:.0e} to be searched, got {largest**0.5:.0e}: "
            "scale them"
        )
    if largest < 1 / _MAX_SQUARE and bool(table.any()):
        raise ValueError(
            f"features must be longer than {_MAX_SQUARE**-0.5:.0e} to be searched, got numbers of "
            f"{float(table.abs().max()):.0e} at most, whose squares may be 0: scale them"
        )
    sample = table[:: max(1, len(table) // 1024)]
    center = sample.mean(0, dtype=torch.float64)
    variance = float((sample - center.float()).square().sum(1).mean())
    if float(center.square().sum()) <= _FAR * variance:
        return table, None, squares
    near = table - center.float()
    return near, center.float(), row_squares(near)


def principal_directions(table: Tensor, seed: int) -> Tensor | None:
    """(D, d) orthonormal directions that hold 95 % of the variance, or 512; None where it cannot pay.

    They are estimated on up to 4096 samples, by a randomized range finder with one power step.
    """
    num_samples, dim = table.shape
    most = min(MAX_REDUCED_DIM, dim // 2)
    if num_samples < MIN_REDUCED_SAMPLES or dim <= 256:
        return None
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.choice(num_samples, min(num_samples, 4096), replace=False))
    sample = table[torch.from_numpy(rows).to(table.device)]
    sample = sample - sample.mean(0)
    probe = torch.from_numpy(generator.standard_normal((dim, most), dtype=np.float32)).to(table.device)
    basis = torch.linalg.qr(sample.T @ (sample @ probe)).Q  # (D, most)
    reduced = sample @ basis
    variance, rotation = torch.linalg.eigh(reduced.T @ reduced)  # ascending
    kept = variance.flip(0).cumsum(0) / sample.square().sum().clamp_min(1e-30)
    enough = int((kept < _VARIANCE_KEPT).sum()) + 1
    return (basis @ rotation.flip(1)[:, : min(most, max(64, enough))]).contiguous()
