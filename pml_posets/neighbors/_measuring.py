"""Exact distances to candidates, by plain differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._queries import Block

Answer = tuple[Tensor, Tensor, Tensor]
"""(B, k) indices (-1: none), (B, k) squared distances (inf: none), (B, k) flips; by (distance, index)."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """a (M, D) times b (N, D) transposed, (M, N); on a CPU by numpy, up to twice as fast as torch there."""
    if a.device.type == "cpu":
        return torch.from_numpy(a.numpy() @ b.numpy().T)
    return a @ b.T


def squared_gaps(table: Tensor, view: Tensor, index: Tensor) -> Tensor:
    """(B, K) squared distances of queries (B, D) to rows (B, K) of a table, by plain differences; inf for -1.

    On a CPU by faiss, which holds no differences; elsewhere a few queries at a time.
    """
    if table.device.type == "cpu":
        import faiss

        library: Any = faiss
        squares = np.empty(index.shape, np.float32)
        arrays = (squares, view.contiguous().numpy(), table.numpy(), index.contiguous().numpy())
        pointers = [library.swig_ptr(array) for array in arrays]
        library.fvec_L2sqr_by_idx(*pointers, table.shape[1], *index.shape)
        return torch.from_numpy(squares).masked_fill_(index < 0, torch.inf)
    step = max(1, 2**26 // (index.shape[1] * table.shape[1]))
    result = table.new_empty(index.shape)
    for start in range(0, len(view), step):
        part = index[start : start + step]
        gap = table[part.clamp_min(0)] - view[start : start + step, None]  # (b, K, D)
        result[start : start + step] = gap.square_().sum(2).masked_fill_(part < 0, torch.inf)
    return result


def measure(table: Tensor, views: list[Tensor], candidates: list[Tensor], k: int) -> Answer:
    """The k best of the candidates (B, K) of each view, each sample in the view it is nearer to."""
    width = candidates[0].shape[1]
    parts = zip(views, candidates, strict=True)
    squares = torch.cat([squared_gaps(table, view, index) for view, index in parts], 1)
    index = torch.cat(candidates, 1)
    flip = (torch.arange(index.shape[1], device=table.device) >= width).expand_as(index)
    if len(views) > 1:  # an index that both views proposed counts once, at its smaller distance
        squares, index, flip = _ordered(squares, index, flip)
        order = index.argsort(dim=1, stable=True)
        squares, index, flip = (part.gather(1, order) for part in (squares, index, flip))
        squares[:, 1:].masked_fill_(index[:, 1:] == index[:, :-1], torch.inf)
    squares, index, flip = (part[:, :k] for part in _ordered(squares, index, flip))
    missing = k - index.shape[1]
    if missing > 0:
        pad = torch.nn.functional.pad
        squares = pad(squares, (0, missing), value=torch.inf)
        index, flip = pad(index, (0, missing)), pad(flip, (0, missing))
    empty = squares.isinf()
    return index.masked_fill(empty, -1), squares.clone(), flip.masked_fill(empty, False)


def _ordered(squares: Tensor, index: Tensor, flip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows by (squared distance, index); of one sample the first stays first, which is not flipped."""
    order = index.argsort(dim=1, stable=True)
    order = order.gather(1, squares.gather(1, order).argsort(dim=1, stable=True))
    return squares.gather(1, order), index.gather(1, order), flip.gather(1, order)


def measure_all(table: Tensor, block: Block, k: int) -> Answer:
    """The answer from the distances to all samples by plain differences: slow, and right for any ties."""
    every = torch.arange(len(table), device=table.device)
    step = max(1, 2**22 // len(table))
    parts = []
    for which in torch.arange(len(block.excluded), device=table.device).split(step):
        some, nearest = block.take(which), []
        for view in some.views:
            squares = squared_gaps(table, view, every.expand(len(view), -1))
            some.exclude(squares, 0)
            value, order = squares.sort(dim=1, stable=True)
            nearest.append(order[:, :k].masked_fill(value[:, :k].isinf(), -1))
        parts.append(measure(table, some.views, nearest, k))
    index, squares, flip = (torch.cat(column) for column in zip(*parts, strict=True))
    return index, squares, flip
