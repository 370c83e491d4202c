"""Groups of samples that may overlap: the space they are measured in, and how they grow around samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..neighbors.nearest import Neighbors

_ROW_BYTES = 1 << 22  # rows gathered at a time, to stay in the cache
_BLOCK_NUMBERS = 1 << 23  # distances or comparisons held at a time
_FEWEST_CANDIDATES = 12  # measured together around a sample
_ROUNDING = 1e-4  # by how much a distance from a matrix product may miss the radius that it defines


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

    def matrices(self, space: Space) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Some groups (b,) at a time: (b, w, w) float64 distances, and 1 for each pair of two members."""
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
                yield chosen, gaps, pairs

    def measure(self, space: Space) -> tuple[np.ndarray, np.ndarray]:
        """(G, S) float64 twice: mean similarity and mean distance of each to the others; 0 beside -1."""
        near, far = np.zeros(self.members.shape), np.zeros(self.members.shape)
        sizes = self.sizes
        for chosen, gaps, pairs in self.matrices(space):
            width, others = gaps.shape[1], np.maximum(sizes[chosen] - 1, 1)[:, None]
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


def grow(
    space: Space,
    neighbors: Neighbors,
    radii: np.ndarray,
    codes: np.ndarray | None,
    min_size: int,
    max_size: int,
    max_widening: float,
) -> Groups:
    """A group of mutually similar samples around each sample, in the order in which it grew."""
    num_samples, k = neighbors.indices.shape
    place = space.table.device
    members = np.full((num_samples, min(max_size, k + 1)), -1, np.int64)
    flips = np.zeros(members.shape, bool)
    members[:, 0] = np.arange(num_samples)
    sums = np.zeros((2, *members.shape))
    reached = neighbors.indices >= 0
    if neighbors.flips is None:  # a list of mirrored neighbors holds distances of the sample mirrored
        limits = np.minimum(radii[:, None], radii[np.maximum(neighbors.indices, 0)])
        reached &= neighbors.distances <= limits * np.float32(1 + 2 * _ROUNDING)
    # Candidates, the sample among them; below some 12 rows, matrix products round ties in another way.
    counts = np.where(reached.any(axis=1), k + 1 - reached[:, ::-1].argmax(axis=1), 1)
    counts = np.where(counts > 1, np.maximum(counts, min(_FEWEST_CANDIDATES, k + 1)), 1)
    for above, width in size_ranges(counts):
        part = np.flatnonzero((counts > above) & (counts <= width))
        for block in blocks(part.size, width**2):
            first = part[block]
            index, flip, gaps, far = _around(space, neighbors, radii, first, width)
            source = None if codes is None else torch.from_numpy(codes[np.maximum(index, 0)]).to(place)
            row = torch.arange(len(index), device=place)
            farthest = far[:, 0].clone()  # (b, width), each candidate to the group
            farthest[:, 0] = torch.inf
            diameter = torch.zeros(len(index), device=place)
            inside = torch.zeros(index.shape, dtype=torch.bool, device=place)
            inside[:, 0] = True
            for position in range(1, min(width, members.shape[1])):
                nearest, pick = farthest.min(dim=1)
                taken = nearest <= 1 + _ROUNDING
                if position >= min_size and np.isfinite(max_widening):
                    taken &= nearest <= max_widening * diameter
                chosen = taken.cpu().numpy().nonzero()[0]
                if not chosen.size:
                    break
                slot = pick.cpu().numpy()[chosen]
                members[first[chosen], position] = index[chosen, slot]
                flips[first[chosen], position] = flip[chosen, slot]
                near = gaps[row, pick]  # (b, width), the new member to all
                for total, values in zip(sums, (torch.exp(near / -space.scale), near), strict=True):
                    added = (values.double() * (inside & taken[:, None])).sum(1).cpu().numpy()
                    total[first, position] = total[first, position - 1] + added
                inside[row, pick] |= taken
                diameter = torch.maximum(diameter, nearest)
                farthest = torch.maximum(farthest, far[row, pick])
                farthest[row, pick] = torch.inf
                farthest[~taken] = torch.inf
                if source is not None:
                    farthest.masked_fill_(source == source[row, pick][:, None], torch.inf)
    grown = Groups(members, flips, sums)
    return grown.first(int(grown.sizes.max()))


def _around(
    space: Space, neighbors: Neighbors, radii: np.ndarray, samples: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, Tensor, Tensor]:
    """(b, width) candidates for the groups around samples, these first, and their flips; (b, width, width)
    distances, and the same in units of the smaller of both radii, to no candidate inf.
    """
    index = np.concatenate([samples[:, None], neighbors.indices[samples, : width - 1]], axis=1)
    flip = np.zeros(index.shape, bool)
    if neighbors.flips is not None:
        flip[:, 1:] = neighbors.flips[samples, : width - 1]
    reach = torch.from_numpy(radii[np.maximum(index, 0)]).to(space.table.device)
    limit = torch.minimum(reach[:, :, None], reach[:, None, :])
    gaps = space.distances(index, flip)
    far = gaps / limit.clamp_min_(torch.finfo(torch.float32).tiny)
    far[:, 0].masked_fill_(torch.from_numpy(index < 0).to(far.device), torch.inf)
    return index, flip, gaps, far
