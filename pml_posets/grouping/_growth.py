"""Which samples are similar to each (its radius), and the mutually similar group that grows around it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..neighbors._measuring import product
from ..neighbors.nearest import Neighbors
from ._groups import Groups, Space, blocks

_ROUNDING = 1e-4  # by how much a distance from a matrix product may miss the radius that it defines


def top_radii(
    space: Space,
    neighbors: Neighbors,
    codes: np.ndarray | None,
    top_fraction: float,
    min_neighbors: int,
    seed: int,
) -> np.ndarray:
    """(N,) float32, distance within which the top fraction of the samples of other sources lies.

    From the list of neighbors where that is long enough, else from a sample of all.
    """
    num_samples, k = neighbors.indices.shape
    counts = np.ones(num_samples, np.int64) if codes is None else np.bincount(codes)[codes]
    available = num_samples - counts  # samples that may be neighbors
    rank = np.ceil(top_fraction * available - 1e-9).astype(np.int64)
    rank = np.minimum(np.maximum(rank, min_neighbors), available)
    listed = np.minimum(rank, (neighbors.indices >= 0).sum(axis=1))  # 0: it has no neighbor
    radii = neighbors.distances[np.arange(num_samples), np.maximum(listed, 1) - 1].copy()
    radii[listed == 0] = 0
    far = np.flatnonzero(rank > k)
    if not far.size:
        return radii
    size = int(np.clip(np.ceil(16 / top_fraction), 1024, 8192))
    chosen = np.arange(num_samples)
    if size < num_samples:
        chosen = np.sort(np.random.default_rng(seed).choice(num_samples, size, replace=False))
    radii[far] = np.maximum(radii[far], quantile_distances(space, far, chosen, top_fraction, codes))
    return radii


def quantile_distances(
    space: Space, rows: np.ndarray, chosen: np.ndarray, fraction: float, codes: np.ndarray | None
) -> np.ndarray:
    """(R,) distance within which the fraction of the chosen samples lies, own source and self left out."""
    others = space.rows(chosen, np.zeros(chosen.size, bool))
    center = others.mean(0)
    others -= center
    squares = others.square().sum(1)
    result = np.zeros(rows.size, np.float32)

    def gaps(part: np.ndarray, flipped: bool) -> Tensor:
        views = space.rows(part, np.full(part.size, flipped)).sub_(center)
        lengths = torch.linalg.vector_norm(views, dim=1).square_()[:, None]
        return product(views, others).mul_(-2).add_(squares).add_(lengths)

    for block in blocks(rows.size, max(chosen.size, space.table.shape[1])):
        part = rows[block]
        found = gaps(part, False)
        if space.mirror is not None:
            found = torch.minimum(found, gaps(part, True))
        left_out = part[:, None] == chosen if codes is None else codes[part][:, None] == codes[chosen]
        squared = found.clamp_min_(0).cpu().numpy()
        squared[left_out] = np.inf
        count = chosen.size - left_out.sum(axis=1)
        rank = np.maximum(np.ceil(fraction * count - 1e-9).astype(np.int64), 1) - 1
        squared.partition(np.unique(rank), axis=1)
        result[block] = np.sqrt(squared[np.arange(part.size), rank])
    return np.where(np.isfinite(result), result, 0)


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
    for block in blocks(num_samples, (k + 1) ** 2):
        index = np.concatenate([members[block, :1], neighbors.indices[block]], axis=1)  # (b, k + 1)
        flip = np.zeros(index.shape, bool)
        if neighbors.flips is not None:
            flip[:, 1:] = neighbors.flips[block]
        reach = torch.from_numpy(radii[np.maximum(index, 0)]).to(place)
        limit = torch.minimum(reach[:, :, None], reach[:, None, :])
        gaps = space.distances(index, flip)
        far = gaps / limit.clamp_min_(torch.finfo(torch.float32).tiny)
        outside = torch.from_numpy(index < 0).to(place)
        source = None if codes is None else torch.from_numpy(codes[np.maximum(index, 0)]).to(place)
        row = torch.arange(len(index), device=place)
        farthest = far[:, 0].masked_fill(outside, torch.inf)  # (b, k + 1), each candidate to the group
        farthest[:, 0] = torch.inf
        diameter = torch.zeros(len(index), device=place)
        inside = torch.zeros(index.shape, dtype=torch.bool, device=place)
        inside[:, 0] = True
        for position in range(1, members.shape[1]):
            nearest, pick = farthest.min(dim=1)
            taken = nearest <= 1 + _ROUNDING
            if position >= min_size and np.isfinite(max_widening):
                taken &= nearest <= max_widening * diameter
            chosen = taken.cpu().numpy().nonzero()[0]
            if not chosen.size:
                break
            slot = pick.cpu().numpy()[chosen]
            members[block][chosen, position] = index[chosen, slot]
            flips[block][chosen, position] = flip[chosen, slot]
            near = gaps[row, pick]  # (b, k + 1), the new member to all
            for total, values in zip(sums, (torch.exp(near / -space.scale), near), strict=True):
                added = (values.double() * (inside & taken[:, None])).sum(1).cpu().numpy()
                total[block, position] = total[block, position - 1] + added
            inside[row, pick] |= taken
            diameter = torch.maximum(diameter, nearest)
            farthest = torch.maximum(farthest, far[row, pick])
            farthest[row, pick] = torch.inf
            farthest[~taken] = torch.inf
            if source is not None:
                farthest.masked_fill_(source == source[row, pick][:, None], torch.inf)
    return Groups(members, flips, sums)
