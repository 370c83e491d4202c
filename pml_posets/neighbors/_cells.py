"""Candidates for nearest neighbours from the cells around a query, for approximate searches.

Samples are parted into cells of about 64 by k-means. The queries of one cell look together at the samples of
the nearest cells, some 96 sqrt(N) of N, by one product of matrices. So the work grows as N^1.5, with a small
constant, and not as N^2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ._candidates import Questions, row_squares

_CELL = 64  # samples of a cell, about
_REACH = 96  # samples that a query looks at, at least, per sqrt(N)
_TILE = 2**24  # distances held at once
_ROUNDS = 6  # of k-means
_SAMPLE = 48  # samples a cell that k-means sees


class Cells:
    """Samples in cells, and which cells are near each.

    Args:
        table: (N, D) float32.
        codes: (N,) sources of the samples, or None.
        seed: of the sample that the cells are learned on.
    """

    def __init__(self, table: Tensor, codes: Tensor | None, seed: int) -> None:
        self.table, self.codes = table, codes
        self.squares = row_squares(table)  # (N,)
        num_cells = max(1, min(len(table) // _CELL, int(16 * len(table) ** 0.5)))
        self.centres = _centres(table, num_cells, seed)  # (C, D)
        self.of_centres = row_squares(self.centres)
        cell = self.cell_of(table)
        self.members = cell.argsort(stable=True)  # (N,) cell by cell
        sizes = cell.bincount(minlength=num_cells)
        ends = sizes.cumsum(0)
        self.starts, self.ends = (ends - sizes).tolist(), ends.tolist()
        self.sizes, self.reach = sizes, int(_REACH * len(table) ** 0.5)

    def cell_of(self, rows: Tensor) -> Tensor:
        """(B, D) to (B,) int64, the cell each lies in."""
        step = max(1, _TILE // len(self.centres))
        parts = [
            torch.addmm(self.of_centres, rows[first : first + step], self.centres.T, alpha=-2).argmin(1)
            for first in range(0, len(rows), step)
        ]
        return torch.cat(parts) if parts else rows.new_zeros(0, dtype=torch.int64)

    def place_of(self, rows: Tensor) -> Tensor:
        """(B, D) to (B,) int64: sorted by it, rows of one cell, and then of cells nearby, come together."""
        gaps = torch.addmv(self.of_centres, self.centres, self.centres[0], alpha=-2)
        place = torch.empty_like(gaps, dtype=torch.int64)
        place[gaps.argsort(stable=True)] = torch.arange(len(gaps), device=gaps.device)
        return place[self.cell_of(rows)]

    def propose(self, view: Tensor, ask: Questions, width: int) -> tuple[Tensor, Tensor]:
        """(B, D) queries to (B, width) indices (-1: none) and rounded squared distances (inf: none).

        Fast where neighbouring rows of the queries lie in the same cells.
        """
        found = torch.full((len(view), width), -1, dtype=torch.int64, device=view.device)
        best = view.new_full((len(view), width), torch.inf)
        cell = self.cell_of(view)
        order = cell.argsort(stable=True)
        names, counts = cell[order].unique_consecutive(return_counts=True)
        first = 0
        for name, count in zip(names.tolist(), counts.tolist(), strict=True):
            near = self._near(name, width)
            rows = self.table[near]
            step = max(1, _TILE // len(near))
            for start in range(first, first + count, step):
                which = order[start : min(start + step, first + count)]
                index, square = self._nearest(view[which], ask.pick(which), near, rows, width)
                found[which, : index.shape[1]], best[which, : index.shape[1]] = index, square
            first += count
        return found, best + view.square().sum(1, keepdim=True)

    def _near(self, cell: int, width: int) -> Tensor:
        """Samples of the cells nearest to one, as many cells as hold what is to be looked at."""
        gaps = torch.addmv(self.of_centres, self.centres, self.centres[cell], alpha=-2)
        order = gaps.argsort(stable=True)
        enough = int((self.sizes[order].cumsum(0) < max(self.reach, 4 * width)).sum()) + 1
        return torch.cat([self.members[self.starts[c] : self.ends[c]] for c in order[:enough].tolist()])

    def _nearest(
        self, view: Tensor, ask: Questions, near: Tensor, rows: Tensor, width: int
    ) -> tuple[Tensor, Tensor]:
        gaps = torch.addmm(self.squares[near], view, rows.T, alpha=-2)  # (b, n), |q|^2 still missing
        if ask.codes is not None and self.codes is not None:
            gaps.masked_fill_(ask.codes[:, None] == self.codes[near], torch.inf)
        if ask.own is not None:
            gaps.masked_fill_(ask.own[:, None] == near, torch.inf)
        square, pick = gaps.topk(min(width, len(near)), dim=1, largest=False, sorted=False)
        return near[pick].masked_fill_(square.isinf(), -1), square


def _centres(table: Tensor, num_cells: int, seed: int) -> Tensor:
    """(C, D) means of k-means on a sample; a cell that loses its members keeps its centre."""
    generator = np.random.default_rng(seed)
    count = min(len(table), _SAMPLE * num_cells)
    rows = torch.from_numpy(np.sort(generator.choice(len(table), count, replace=False)))
    sample = table[rows.to(table.device)]
    first = torch.from_numpy(generator.choice(count, num_cells, replace=False)).to(table.device)
    centres = sample[first].clone()
    step = max(1, _TILE // num_cells)
    for _ in range(_ROUNDS):
        squares = row_squares(centres)
        parts = [
            torch.addmm(squares, sample[i : i + step], centres.T, alpha=-2).argmin(1)
            for i in range(0, count, step)
        ]
        cell = torch.cat(parts)
        sizes = cell.bincount(minlength=num_cells)
        sums = torch.zeros_like(centres).index_add_(0, cell, sample)
        there = sizes > 0
        centres[there] = sums[there] / sizes[there, None]
    return centres
