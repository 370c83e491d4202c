"""How far around a sample others count as similar to it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..neighbors._measuring import product
from ..neighbors.nearest import Neighbors
from ._groups import Space, blocks

_SMALLEST = np.finfo(np.float32).tiny


def top_radii(
    space: Space,
    neighbors: Neighbors,
    codes: np.ndarray | None,
    top_fraction: float | None,
    min_neighbors: int,
    seed: int,
    ends: np.ndarray,
) -> np.ndarray:
    """(N,) float32, distance within which the top fraction of other sources' samples lies, or min_neighbors.

    From the list of neighbors where that is long enough or a clear gap ends it (`clear_ends`), else from a
    sample of all.
    """
    num_samples, k = neighbors.indices.shape
    counts = np.ones(num_samples, np.int64) if codes is None else np.bincount(codes)[codes]
    available = num_samples - counts  # samples that may be neighbors
    rank = np.ceil((top_fraction or 0) * available - 1e-9).astype(np.int64)
    rank = np.minimum(np.maximum(rank, min_neighbors), available)
    if top_fraction is None and codes is not None:
        rank = np.minimum(_rank_of_sources(neighbors, codes, min_neighbors), available)
    listed = np.minimum(rank, (neighbors.indices >= 0).sum(axis=1))  # 0: it has no neighbor
    radii = neighbors.distances[np.arange(num_samples), np.maximum(listed, 1) - 1].copy()
    radii[listed == 0] = 0
    far = np.flatnonzero((rank > k) & np.isinf(ends))
    if not far.size or top_fraction is None:
        return radii
    size = int(np.clip(np.ceil(16 / top_fraction), 1024, 8192))
    chosen = np.arange(num_samples)
    if size < num_samples:
        chosen = np.sort(np.random.default_rng(seed).choice(num_samples, size, replace=False))
    radii[far] = np.maximum(radii[far], quantile_distances(space, far, chosen, top_fraction, codes))
    return radii


def _rank_of_sources(neighbors: Neighbors, codes: np.ndarray, wanted: int) -> np.ndarray:
    """(N,) how many of the nearest it takes to see this many sources; k where the list shows fewer."""
    sources = np.where(neighbors.indices >= 0, codes[neighbors.indices], -1)
    order = np.argsort(sources, axis=1, kind="stable")
    ordered = np.take_along_axis(sources, order, 1)
    first = ordered >= 0  # of its source, in the order of the list
    first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    fresh = np.zeros(first.shape, bool)
    np.put_along_axis(fresh, order, first, 1)
    return np.minimum((fresh.cumsum(axis=1) < wanted).sum(axis=1) + 1, sources.shape[1])


def clear_ends(neighbors: Neighbors, min_size: int, contrast: float) -> np.ndarray:
    """(N,) float32, distance of the last neighbor before the widest gap in the list; inf without a clear one.

    Args:
        neighbors: (N, k), nearest first.
        min_size: of a class: gaps before its last member do not count.
        contrast: ratio of two distances that is clear; inf: none is.
    """
    distances, listed = neighbors.distances, neighbors.indices >= 0
    gaps = np.zeros(distances.shape, np.float32)  # between each neighbor and the next
    gaps[:, :-1] = np.where(listed, distances, 0)[:, 1:] / np.maximum(distances[:, :-1], _SMALLEST)
    gaps[:, : min_size - 2] = 0
    row, last = np.arange(len(gaps)), gaps.argmax(axis=1)
    clear = (gaps[row, last] >= contrast) & np.isfinite(contrast)
    return np.where(clear, distances[row, last], np.float32(np.inf))


def clear_radii(radii: np.ndarray, ends: np.ndarray, contrast: float) -> np.ndarray:
    """(N,) float32, the radii (`top_radii`), but ended by a clear gap (`clear_ends`) or near their median."""
    if np.isposinf(contrast):
        return radii
    clear = np.isfinite(ends)
    ended = np.where(clear, ends, radii)
    return np.where(clear, ended, np.minimum(ended, np.float32(contrast) * np.median(ended)))


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
