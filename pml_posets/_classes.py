"""Surrogate labels and the classes they make: checks, members by class, distances inside a class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from ._validation import as_labels
from .neighbors.nearest import Neighbors

ArrayLike: TypeAlias = "np.ndarray | torch.Tensor"

BLOCK_BYTES = 1 << 26  # rows gathered at a time
_SMALL_CLASS = 32  # up to this size distances are differences, above it centered matrix products in float64
_WHOLE_CLASS = 4096  # up to this size the distances of a class are one block


def relabel(labels: Any) -> np.ndarray:
    """Renumber classes to 0..C-1 in the order of their old ids; -1 stays -1.

    Args:
        labels: (N,) integers from -1, gaps allowed.

    Returns:
        (N,) int64.

    Raises:
        TypeError: if the labels are no integers.
        ValueError: if they are not one-dimensional or below -1.

    Example:
        >>> relabel([7, -1, 3, 7])
        array([ 1, -1,  0,  1])
    """
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    labels = as_labels(labels, labels.shape[0] if labels.ndim else 0, contiguous=False)
    assigned = labels >= 0
    renumbered = np.full(labels.shape, -1, np.int64)
    renumbered[assigned] = np.unique(labels[assigned], return_inverse=True)[1].reshape(-1)
    return renumbered


def check_neighbors(neighbors: Neighbors, num_samples: int, mirrored: bool) -> None:
    """That the lists are those of all the samples, with flips if there are mirrored features."""
    shape = np.shape(neighbors.indices)
    if len(shape) != 2 or shape[0] != num_samples or shape[1] < 1:
        raise ValueError(
            f"neighbors must have a row for each of the {num_samples} samples, got indices of shape {shape}: "
            "were they searched with queries?"
        )
    if neighbors.indices.min() < -1 or neighbors.indices.max() >= num_samples:
        raise ValueError(f"neighbors must hold indices in -1..{num_samples - 1}: they are of another dataset")
    if (neighbors.indices == np.arange(num_samples)[:, None]).any():
        raise ValueError(
            "neighbors must not list a sample as its own neighbor: search with exclude_self=True"
        )
    if mirrored != (neighbors.flips is not None):
        raise ValueError("neighbors and mirrored do not match: give both with mirror images, or neither")


def oriented(
    features: np.ndarray, mirrored: np.ndarray | None, flips: np.ndarray, indices: np.ndarray
) -> np.ndarray:
    """Rows of the given samples, each from the mirrored features where its flip is set; a new array."""
    rows = features[indices]
    if mirrored is not None:
        flipped = flips[indices]
        rows[flipped] = mirrored[indices[flipped]]
    return rows


@dataclass(frozen=True)
class ClassMembers:
    """Samples by class: those of class c are `order[starts[c]:starts[c + 1]]`, ascending."""

    order: np.ndarray  # (number of assigned samples,) int64
    starts: np.ndarray  # (C + 1,) int64

    @classmethod
    def of(cls, labels: np.ndarray) -> ClassMembers:
        """From validated labels; unassigned samples are left out."""
        num_unassigned = int((labels < 0).sum())
        order = np.argsort(labels, kind="stable")[num_unassigned:]
        num_classes = int(labels.max()) + 1 if labels.size else 0
        sizes = np.bincount(labels[order], minlength=num_classes)
        return cls(order, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    @property
    def sizes(self) -> np.ndarray:
        """(C,) int64, the number of members of each class."""
        return np.diff(self.starts)

    def blocks(self, num_dims: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(b,) class ids and their (b, size) members, classes of equal size together.

        Their rows and pairs take bounded memory; a class too large for that comes alone.
        """
        sizes = self.sizes
        for size in np.unique(sizes[sizes > 0]):
            classes = np.flatnonzero(sizes == size)
            step = max(1, int(BLOCK_BYTES // (4 * size * (num_dims + 4 * size))))
            for first in range(0, classes.size, step):
                block = classes[first : first + step]
                yield block, self.order[self.starts[block][:, None] + np.arange(size)]


def pairwise_distances(rows: torch.Tensor) -> torch.Tensor:
    """Euclidean distances inside each of B groups: (B, s, D) float32 to (B, s, s), with a zero diagonal.

    Groups of up to 32 by plain differences; larger ones by matrix products of centered float64 rows, so
    that near-duplicates keep their distance.
    """
    if rows.shape[1] <= _SMALL_CLASS:
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    rows = rows.double()
    rows = rows - rows.mean(dim=1, keepdim=True)
    distances = torch.cdist(rows, rows, compute_mode="use_mm_for_euclid_dist")
    distances.diagonal(dim1=1, dim2=2).zero_()
    return distances


def row_sums(rows: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """What each member's distances, or with a scale its similarities, inside its group add up to.

    Args:
        rows: (B, s, D) float32.
        scale: of the similarity exp(-distance / scale); None (default) sums distances.

    Returns:
        (B, s) float64, itself counted (as 0 or 1), in bounded memory.
    """
    if rows.shape[1] <= _WHOLE_CLASS:
        distances = pairwise_distances(rows).double()
        return (distances if scale is None else torch.exp(distances / -scale)).sum(dim=2)
    rows = rows.double()
    rows = rows - rows.mean(dim=1, keepdim=True)
    sums = []
    for part in rows.split(max(1, BLOCK_BYTES // (8 * rows.shape[1])), dim=1):
        distances = torch.cdist(part, rows, compute_mode="use_mm_for_euclid_dist")
        sums.append((distances if scale is None else torch.exp(distances / -scale)).sum(dim=2))
    return torch.cat(sums, dim=1)
