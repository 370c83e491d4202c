"""Groups of samples that may overlap, and the space they are measured in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ROW_BYTES = 1 << 22  # rows gathered at a time, to stay in the cache
_BLOCK_NUMBERS = 1 << 23  # distances or comparisons held at a time


@dataclass(frozen=True)
class Space:
    """Features on a device, each row also mirrored where mirror images are in use."""

    table: Tensor  # (N, D) float32
    mirror: Tensor | None  # (N, D) float32
    scale: float  # of the similarity exp(-distance / scale)

    @classmethod
    def of(
        cls, features: np.ndarray, mirrored: np.ndarray | None, scale: float, device: Any = "cpu"
    ) -> Space:
        """From validated features; on the CPU without a copy."""
        mirror = None if mirrored is None else torch.from_numpy(mirrored).to(device=device)
        return cls(torch.from_numpy(features).to(device=device), mirror, float(scale))

    def rows(self, indices: np.ndarray, flips: np.ndarray) -> Tensor:
        """(..., D) rows of (...) samples, mirrored where flipped; any row for an index of -1."""
        place = self.table.device
        index = torch.from_numpy(np.maximum(indices, 0).reshape(-1)).to(place)
        rows = self.table.index_select(0, index)
        if self.mirror is not None and flips.any():
            where = torch.from_numpy(flips.reshape(-1)).to(place)
            rows[where] = self.mirror[index[where]]
        return rows.view(*indices.shape, -1)

    def distances(
        self,
        indices: np.ndarray,
        flips: np.ndarray,
        others: np.ndarray | None = None,
        other_flips: np.ndarray | None = None,
    ) -> Tensor:
        """Euclidean distances inside groups, or from their members to other ones.

        By matrix products of rows centered on the first of each group, so that rounding stays small beside
        the distances in it; a few groups at a time, so that their rows stay in the processor's cache. Groups
        are (G, S), others (G, R): (G, S, R) float32, on the device; any distance where an index is -1.
        """
        width = indices.shape[1] if others is None else others.shape[1]
        result = self.table.new_empty((*indices.shape, width))
        budget = _ROW_BYTES if self.table.device.type == "cpu" else 64 * _ROW_BYTES
        step = max(1, budget // (4 * self.table.shape[1] * (indices.shape[1] + width)))
        for first in range(0, len(indices), step):
            part = slice(first, first + step)
            rows = self.rows(indices[part], flips[part])
            center = rows[:, :1].clone()
            rows -= center
            if others is None or other_flips is None:
                found = torch.bmm(rows, rows.transpose(1, 2))
                squares = other_squares = found.diagonal(dim1=1, dim2=2).clone()
            else:
                columns = self.rows(others[part], other_flips[part])
                columns -= center
                found = torch.bmm(rows, columns.transpose(1, 2))
                squares, other_squares = (
                    torch.linalg.vector_norm(x, dim=2).square_() for x in (rows, columns)
                )
            found.mul_(-2).add_(squares[:, :, None]).add_(other_squares[:, None, :])
            torch.sqrt(found.clamp_min_(0), out=result[part])
        return result


def blocks(num_groups: int, numbers: int) -> Iterator[slice]:
    """Slices of groups of which each takes this many numbers, in bounded memory."""
    step = max(1, _BLOCK_NUMBERS // max(1, numbers))
    for first in range(0, num_groups, step):
        yield slice(first, min(first + step, num_groups))


@dataclass
class Groups:
    """G groups of up to S samples."""

    members: np.ndarray  # (G, S) int64 dataset indices, each group's first, then -1 to the end
    flips: np.ndarray  # (G, S) bool, True where a member takes part mirrored; False beside -1
    sums: np.ndarray | None = None
    """(2, G, S) float64, sums over the pairs of the first s + 1 members: similarities, and distances."""

    @property
    def sizes(self) -> np.ndarray:
        """(G,) int64."""
        return (self.members >= 0).sum(axis=1)

    def pick(self, which: np.ndarray) -> Groups:
        """Some of the groups."""
        sums = None if self.sums is None else self.sums[:, which]
        return Groups(self.members[which], self.flips[which], sums)

    def first(self, size: int) -> Groups:
        """The groups, cut off at a size."""
        sums = None if self.sums is None else self.sums[:, :, :size]
        return Groups(self.members[:, :size], self.flips[:, :size], sums)

    @property
    def lowest(self) -> np.ndarray:
        """(G,) int64, the lowest index of each group."""
        none = np.iinfo(np.int64).max
        return np.where(self.members < 0, none, self.members).min(axis=1, initial=none)

    def packed(self) -> Groups:
        """Members to the front of each row, in their order."""
        front = np.argsort(self.members < 0, axis=1, kind="stable")
        return Groups(np.take_along_axis(self.members, front, 1), np.take_along_axis(self.flips, front, 1))

    def upright(self) -> Groups:
        """Groups of which more than half is mirrored, turned over."""
        turned = 2 * self.flips.sum(axis=1) > self.sizes
        return Groups(self.members, (self.flips ^ turned[:, None]) & (self.members >= 0))

    def measure(self, space: Space) -> tuple[np.ndarray, np.ndarray]:
        """(G, S) float64 twice: mean similarity and mean distance of each to the others; 0 beside -1."""
        near, far = np.zeros(self.members.shape), np.zeros(self.members.shape)
        sizes = self.sizes
        for above, width in size_ranges(sizes):
            part = np.flatnonzero((sizes > above) & (sizes <= width))
            for block in blocks(part.size, width**2):
                chosen = part[block]
                members, flips = self.members[chosen, :width], self.flips[chosen, :width]
                gaps = space.distances(members, flips).double()
                filled = torch.from_numpy(members >= 0).to(gaps.device)
                pairs = (filled[:, :, None] & filled[:, None, :]).double()
                pairs.diagonal(dim1=1, dim2=2).zero_()
                others = np.maximum(sizes[chosen] - 1, 1)[:, None]
                near[chosen, :width] = (torch.exp(gaps / -space.scale) * pairs).sum(2).cpu().numpy() / others
                far[chosen, :width] = (gaps * pairs).sum(2).cpu().numpy() / others
        return near, far

    def means(self, space: Space) -> tuple[np.ndarray, np.ndarray]:
        """(G,) float64 twice: mean similarity (compactness) and mean distance of the pairs."""
        sizes = np.maximum(self.sizes, 1)
        if self.sums is not None:
            pairs = np.maximum(sizes * (sizes - 1) / 2, 1)
            near, far = self.sums[:, np.arange(sizes.size), sizes - 1] / pairs
            return near, far
        near, far = self.measure(space)
        return near.sum(axis=1) / sizes, far.sum(axis=1) / sizes


def size_ranges(sizes: np.ndarray, least: int = 1) -> list[tuple[int, int]]:
    """Ranges (above, up to] of the sizes above `least` to be padded alike, a quarter more at a time."""
    edges = [least]
    while edges[-1] < sizes.max(initial=0):
        edges.append(min(int(sizes.max()), edges[-1] + max(1, edges[-1] // 4)))
    return list(pairwise(edges))
