"""Surrogate labels and the classes they make: checks, members by class, distances inside a class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ._validation import as_array, as_labels
from .neighbors.nearest import Neighbors

BLOCK_BYTES = 1 << 26  # rows gathered at a time
_SMALL_CLASS = 32  # up to this size distances are differences, above it centered matrix products in float64
_PRODUCTS = "use_mm_for_euclid_dist"
_WHOLE_CLASS = 4096  # up to this size the distances of a class are one block


def relabel(labels: Any) -> np.ndarray:
    """Renumber classes to 0..C-1 in the order of their old ids; -1 stays -1.

    Args:
        labels: (N,) integers from -1, gaps allowed.

    Returns:
        (N,) int64.

    Raises:
        TypeError, ValueError: if the labels are no integers, not one-dimensional or below -1.

    Example:
        >>> relabel([7, -1, 3, 7])
        array([ 1, -1,  0,  1])
    """
    labels = as_array(labels)
    labels = as_labels(labels, len(labels) if labels.ndim else 0, contiguous=False).copy()
    assigned = labels >= 0
    labels[assigned] = np.unique(labels[assigned], return_inverse=True)[1].reshape(-1)
    return labels


def check_neighbors(neighbors: Neighbors, num_samples: int, mirrored: bool) -> None:
    """That the lists are those of all the samples, with flips if there are mirrored features."""
    if not isinstance(neighbors, Neighbors):
        raise TypeError(f"neighbors must be Neighbors, as search returns them, got {neighbors!r}")
    indices = np.asarray(neighbors.indices)
    if indices.ndim != 2 or len(indices) != num_samples or not indices.shape[1]:
        raise ValueError(
            f"neighbors must have a row for each of the {num_samples} samples, got indices of shape "
            f"{indices.shape}: were they searched with queries?"
        )
    if indices.min() < -1 or indices.max() >= num_samples:
        raise ValueError(f"neighbors must hold indices in -1..{num_samples - 1}: they are of another dataset")
    if (indices == np.arange(num_samples)[:, None]).any():
        raise ValueError("neighbors must not hold a sample as its own neighbor: give exclude_self=True")
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
        """(b,) class ids and their (b, size) members, classes of equal size together, in bounded memory."""
        sizes = self.sizes
        for size in np.unique(sizes[sizes > 0]):
            classes = np.flatnonzero(sizes == size)
            step = max(1, int(BLOCK_BYTES // (4 * size * (num_dims + 4 * size))))
            for first in range(0, classes.size, step):
                block = classes[first : first + step]
                yield block, self.order[self.starts[block][:, None] + np.arange(size)]


def row_sums(rows: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """(B, s) float64 sums of the Euclidean distances d of (B, s, D) float32 rows to their group, or of
    exp(-d / scale).
    """

    def summed(distances: torch.Tensor) -> torch.Tensor:
        return (distances if scale is None else torch.exp(distances / -scale)).sum(dim=2)

    size = rows.shape[1]
    if size <= _SMALL_CLASS:
        return summed(torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").double())
    rows = rows.double()
    rows = rows - rows.mean(dim=1, keepdim=True)  # near-duplicates keep their distance in products
    step = size if size <= _WHOLE_CLASS else max(1, BLOCK_BYTES // (8 * size))
    sums = []
    for first in range(0, size, step):
        distances = torch.cdist(rows[:, first : first + step], rows, compute_mode=_PRODUCTS)
        distances.diagonal(offset=first, dim1=1, dim2=2).zero_()
        sums.append(summed(distances))
    return torch.cat(sums, dim=1)
