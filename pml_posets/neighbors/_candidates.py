"""Candidates for nearest neighbours, by faiss or by tiles of matrix products, for `neighbors.search`.

For searching, this file alone knows faiss (`clustering` has its k-means).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FAISS_GPU_MAX_K = 2048  # the longest list that a faiss index on a GPU returns
_MOST_EXCLUDED = 1024  # faiss fetches what must not be found beyond the asked ones, up to this many
MIN_IVF_SAMPLES = 200_000  # below this, an approximate search looks at every (reduced) sample
MIN_REDUCED_SAMPLES = 8_192  # below this, looking at them in full is faster
MAX_REDUCED_DIM = 512
_VARIANCE_KEPT = 0.95
_MAX_SQUARE = 1e36  # squared distances beyond may overflow


@dataclass(frozen=True)
class Questions:
    """What B queries must not find: their own indices, their own source codes; and how many that is."""

    own: Tensor | None
    codes: Tensor | None
    excluded: NDArray[np.int64]

    def pick(self, which: Tensor) -> Questions:
        own = None if self.own is None else self.own[which]
        codes = None if self.codes is None else self.codes[which]
        return Questions(own, codes, self.excluded[which.cpu().numpy()])


class Tiles:
    """Exhaustive search by tiles of |x|^2 - 2 q.x, the lists merged from tile to tile."""

    def __init__(self, table: Tensor, codes: Tensor | None) -> None:
        self.table, self.codes = table, codes
        self.squares = row_squares(table)  # (N,)
        self.max_square = float(self.squares.max())
        if not self.max_square < _MAX_SQUARE:
            raise ValueError(
                f"features must be shorter than {_MAX_SQUARE**0.5:.0e} to be searched, "
                f"got {self.max_square**0.5:.0e}: scale them"
            )
        self.tile = 2**28 if table.device.type == "cuda" else 2**24  # numbers held at once

    def propose(
        self, view: Tensor, ask: Questions, width: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """(B, D) queries to (B, width) indices (-1: none) and rounded squared distances (inf: none)."""
        view = view.to(dtype)
        width = min(width, len(self.table))
        best = view.new_full((len(view), width), torch.inf)
        found = torch.full((len(view), width), -1, dtype=torch.int64, device=view.device)
        step = max(width, self.tile // max(1, len(view)))
        for start in range(0, len(self.table), step):
            part = self.table[start : start + step].to(dtype)
            squares = self.squares[start : start + step] if dtype == torch.float32 else part.square().sum(1)
            tile = torch.addmm(squares, view, part.T, alpha=-2)  # (B, step), |q|^2 still missing
            if ask.codes is not None and self.codes is not None:
                tile.masked_fill_(ask.codes[:, None] == self.codes[None, start : start + step], torch.inf)
            if ask.own is not None:
                here = (ask.own >= start) & (ask.own < start + len(part))
                tile[here.nonzero()[:, 0], ask.own[here] - start] = torch.inf
            value, index = tile.topk(min(width, len(part)), dim=1, largest=False)
            index = torch.where(value.isinf(), -1, index + start)
            best, pick = torch.cat([best, value], 1).topk(width, dim=1, largest=False)
            found = torch.cat([found, index], 1).gather(1, pick)
        return found, best + view.square().sum(1, keepdim=True)


class FaissIndex:
    """Search by faiss; what must not be found is left out of lists that are long enough to afford it.

    On a CPU an exhaustive search reads the table itself; elsewhere an index copies it.
    """

    def __init__(
        self,
        table: NDArray[np.float32],
        codes: NDArray[np.int64] | None,
        place: torch.device,
        cells: bool,
        seed: int,
    ) -> None:
        import faiss

        self.codes, self.on_gpu = codes, place.type == "cuda"
        num_samples, dim = table.shape
        self.table, self.num_samples = np.ascontiguousarray(table), num_samples
        self.index: Any = None
        if not cells and not self.on_gpu:
            return
        index: Any = faiss.IndexFlatL2(dim)
        if cells:  # an inverted file
            num_cells = int(2 * num_samples**0.5)
            index = faiss.IndexIVFFlat(index, dim, num_cells, faiss.METRIC_L2)
            index.cp.seed, index.cp.max_points_per_centroid = seed, 64
            index.cp.min_points_per_centroid = 1
            index.nprobe = max(16, num_cells // 8)
        if self.on_gpu:
            self.resources = faiss.StandardGpuResources()
            index = faiss.index_cpu_to_gpu(self.resources, place.index or 0, index)
        if not index.is_trained:
            index.train(self.table)
        index.add(self.table)
        self.index = index

    def propose(self, view: Tensor, ask: Questions, width: int) -> tuple[Tensor, Tensor]:
        """(B, D) queries to (B, width) indices (-1: none) and rounded squared distances (inf: none)."""
        length = min(width + int(ask.excluded.max(initial=0)), self.num_samples)
        questions = np.ascontiguousarray(view.cpu().numpy())
        best: Any
        index: Any
        if self.index is None:
            import faiss

            best, index = faiss.knn(questions, self.table, length)
        else:
            best, index = self.index.search(questions, length)
        wrong = index < 0
        if ask.own is not None:
            wrong |= index == ask.own.cpu().numpy()[:, None]
        if ask.codes is not None and self.codes is not None:
            wrong |= self.codes[index] == ask.codes.cpu().numpy()[:, None]
        front = np.argsort(wrong, axis=1, kind="stable")[:, : min(width, length)]  # the others, in order
        wrong, best, index = (np.take_along_axis(part, front, 1) for part in (wrong, best, index))
        best, index = np.where(wrong, np.inf, best), np.where(wrong, -1, index)
        return torch.from_numpy(index).to(view.device), torch.from_numpy(best).to(view.device)

    def can(self, ask: Questions, width: int) -> bool:
        """Whether lists of the length that these questions take are worth it, and to be had."""
        excluded = int(ask.excluded.max(initial=0))
        return excluded <= _MOST_EXCLUDED and not (self.on_gpu and width + excluded > _FAISS_GPU_MAX_K)


def principal_directions(table: Tensor, seed: int) -> Tensor | None:
    """(D, d) orthonormal directions that hold 95 % of the variance, or 512; None where it cannot pay.

    They are estimated on up to 4096 samples, by a randomised range finder with one power step.
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


def row_squares(table: Tensor) -> Tensor:
    """(N, D) to (N,) squared lengths."""
    step = max(1, 2**24 // table.shape[1])
    return torch.cat([table[start : start + step].square().sum(1) for start in range(0, len(table), step)])


def squared_gaps(table: Tensor, view: Tensor, index: Tensor) -> Tensor:
    """(B, K) squared distances of queries (B, D) to rows (B, K) of a table, by plain differences; inf for -1.

    On a CPU by faiss where it is installed, which holds no differences; elsewhere a few queries at a time.
    """
    if table.device.type == "cpu" and _has_faiss():
        import faiss

        library: Any = faiss
        squares = np.empty(index.shape, np.float32)
        arrays = (squares, view.contiguous().numpy(), table.numpy(), index.contiguous().numpy())
        pointers = [library.swig_ptr(array) for array in arrays]
        library.fvec_L2sqr_by_idx(*pointers, table.shape[1], *index.shape)
        return torch.from_numpy(squares).masked_fill_(index < 0, torch.inf)
    held = 2**26 if table.device.type == "cuda" else 2**18  # numbers at once; on a CPU they fit its cache
    step = max(1, held // (index.shape[1] * table.shape[1]))
    result = table.new_empty(index.shape)
    for start in range(0, len(view), step):
        part = index[start : start + step]
        gap = table[part.clamp_min(0)] - view[start : start + step, None]  # (b, K, D)
        result[start : start + step] = gap.square_().sum(2).masked_fill_(part < 0, torch.inf)
    return result


@cache
def _has_faiss() -> bool:
    return find_spec("faiss") is not None
