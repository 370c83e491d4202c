"""Medoids of classes, and the Z nearest classes of each sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ._classes import BLOCK_BYTES, ClassMembers, oriented, row_sums
from ._validation import checked
from .neighbors.nearest import Neighbors, search

_TIE = 1e-6  # sums that differ by less than this part of the smallest are tied


def class_medoids(
    features: np.ndarray, mirrored: np.ndarray | None, flips: np.ndarray, members: ClassMembers
) -> np.ndarray:
    """(C,) int64, the member of each class with the smallest summed distance to the others."""
    found = np.full(members.sizes.size, -1, np.int64)
    for classes, block in members.blocks(features.shape[1]):
        if block.shape[1] <= 2:  # alone, or tied
            found[classes] = block[:, 0]
            continue
        rows = oriented(features, mirrored, flips, block.reshape(-1)).reshape(*block.shape, -1)  # (b, s, D)
        sums = row_sums(torch.from_numpy(rows)).numpy()  # (b, s)
        tied = sums <= sums.min(axis=1, keepdims=True) * (1 + _TIE)
        found[classes] = block[np.arange(classes.size), tied.argmax(axis=1)]
    return found


def nearest_classes(
    features: np.ndarray,
    mirrored: np.ndarray | None,
    flips: np.ndarray,
    labels: np.ndarray,
    medoids: np.ndarray,
    num_nearest: int,
    codes: np.ndarray | None,
    neighbors: Neighbors | None,
    settings: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, Z) classes by distance to their medoids, own class first; (N, Z) distances; (N,) flips.

    `flips` are those of the assigned samples, `codes` the sources, `settings` those of the search.
    """
    num_samples = len(labels)
    nearest = np.full((num_samples, num_nearest), -1, np.int64)
    distances = np.full((num_samples, num_nearest), np.inf, np.float32)
    if not medoids.size:
        return nearest, distances, flips
    representatives = oriented(features, mirrored, flips, medoids)  # (C, D)
    k = min(num_nearest, medoids.size)
    remaining = np.arange(num_samples)
    if neighbors is not None:
        nearest[:, :k], distances[:, :k], known = _nearest_listed(neighbors, labels, medoids, k)
        remaining = np.flatnonzero(~known)

    def ask(queries: np.ndarray, rows: np.ndarray) -> Neighbors:
        sources = {} if codes is None else {"sources": codes[medoids], "query_sources": codes[rows]}
        with checked(representatives, queries):
            return search(representatives, k, query_features=queries, **sources, **settings)

    whole = mirrored is None and remaining.size == num_samples
    step = max(1, num_samples if whole else (1 << 28) // (4 * features.shape[1]))
    for rows in np.split(remaining, range(step, remaining.size, step)) if remaining.size else ():
        got = ask(features if whole else oriented(features, mirrored, flips, rows), rows)
        nearest[rows, :k], distances[rows, :k] = got.indices, got.distances
        free = rows[labels[rows] < 0]
        if mirrored is None or not free.size:
            continue
        got = ask(mirrored[free], free)
        flips[free] = got.distances[:, 0] < distances[free, 0]
        turned = flips[free]
        nearest[free[turned], :k] = got.indices[turned]
        distances[free[turned], :k] = got.distances[turned]
    _own_class_first(features, mirrored, flips, labels, representatives, nearest, distances)
    return nearest, distances, flips


def _nearest_listed(
    neighbors: Neighbors, labels: np.ndarray, medoid: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, k) nearest medoids' classes but a sample's own, distances, (N,) whether no other may be nearer."""
    classes = np.full(labels.size, -1)
    classes[medoid] = np.arange(medoid.size)
    listed = np.where(neighbors.indices >= 0, classes[neighbors.indices], -1)  # (N, K)
    listed[listed == labels[:, None]] = -1
    wider = ((0, 0), (0, max(0, k - listed.shape[1])))
    listed = np.pad(listed, wider, constant_values=-1)
    gaps = np.pad(neighbors.distances, wider, constant_values=np.inf)
    end = neighbors.distances[:, -1]  # inf: the list holds all there are
    gaps[listed < 0] = np.inf
    order = np.lexsort((listed, gaps), axis=1)[:, :k]
    listed, gaps = np.take_along_axis(listed, order, 1), np.take_along_axis(gaps, order, 1)
    wanted = np.where(labels >= 0, k - 1, k)
    last = np.where(wanted > 0, gaps[np.arange(labels.size), np.maximum(wanted, 1) - 1], -np.inf)
    return listed, gaps, np.isinf(end) | (last < end)


def _own_class_first(
    features: np.ndarray,
    mirrored: np.ndarray | None,
    flips: np.ndarray,
    labels: np.ndarray,
    representatives: np.ndarray,
    nearest: np.ndarray,
    distances: np.ndarray,
) -> None:
    """Move each assigned sample's own class to the front, in place; the farthest other makes room."""
    assigned = np.flatnonzero(labels >= 0)
    own = labels[assigned]
    own_distances = np.empty(assigned.size, np.float32)
    step = max(1, BLOCK_BYTES // (4 * features.shape[1]))
    for first in range(0, assigned.size, step):
        part = slice(first, first + step)
        gap = oriented(features, mirrored, flips, assigned[part])
        gap -= representatives[own[part]]
        own_distances[part] = np.sqrt(np.einsum("ij,ij->i", gap, gap))
    listed, gaps = nearest[assigned], distances[assigned]
    others = listed != own[:, None]
    # Stable sort: the others keep their order, and the own class, if listed, goes last and is cut off.
    order = np.argsort(~others, axis=1, kind="stable")[:, : listed.shape[1] - 1]
    nearest[assigned, 1:] = np.take_along_axis(listed, order, axis=1)
    distances[assigned, 1:] = np.take_along_axis(gaps, order, axis=1)
    nearest[assigned, 0], distances[assigned, 0] = own, own_distances
