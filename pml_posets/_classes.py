"""Surrogate labels and the classes they make: checks, members by class, distances inside a class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from .neighbors.nearest import Neighbors, as_features

ArrayLike: TypeAlias = "np.ndarray | torch.Tensor"

BLOCK_BYTES = 1 << 26  # rows gathered at a time
_SMALL_CLASS = 32  # up to this size distances are differences, above it centred matrix products in float64
_WHOLE_CLASS = 4096  # up to this size the distances of a class are one block


def as_labels(labels: Any, num_samples: int, name: str = "labels", contiguous: bool = True) -> np.ndarray:
    """Surrogate labels as a validated int64 array.

    Args:
        labels: (N,) integers, array or tensor or list: -1 for an unassigned sample, else its class.
        num_samples: N, the number of samples the labels must match.
        name: what the errors call them.
        contiguous: also demand that the classes are 0..C-1, none empty. Default True.

    Returns:
        (N,) int64, a new array or the one given.

    Raises:
        TypeError: if the labels are no integers.
        ValueError: for another shape, a label below -1, or a class without a member.

    Example:
        >>> as_labels([0, -1, 0, 1], num_samples=4)
        array([ 0, -1,  0,  1])
    """
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    if labels.size == 0 and num_samples == 0:
        return np.zeros(0, np.int64)
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be integers (-1 for unassigned, else 0..C-1), got dtype {labels.dtype}: "
            "convert them with .astype(int) if they are whole numbers"
        )
    if labels.shape != (num_samples,):
        raise ValueError(
            f"{name} must have shape ({num_samples},) to match the samples, got {labels.shape}: "
            "was the dataset filtered after the features were extracted?"
        )
    labels = labels.astype(np.int64, copy=False)
    if labels.min() < -1:
        raise ValueError(
            f"{name} must be -1 (unassigned) or a class id from 0, got {labels.min()} "
            f"at index {labels.argmin()}: mark every unassigned sample by -1"
        )
    if contiguous:
        num_classes = int(labels.max()) + 1
        num_found = np.unique(labels[labels >= 0]).size
        if num_found != num_classes:
            raise ValueError(
                f"{name} must use every class id from 0 to the highest, got {num_found} classes with "
                f"ids up to {num_classes - 1}: renumber them with pml_posets.posets.relabel"
            )
    return labels


def as_count(value: Any, name: str, least: int = 1) -> int:
    """An integer of at least `least`, or a TypeError or ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def as_codes(sources: Any, num_samples: int) -> np.ndarray | None:
    """Sources, (N,) ints or strings, as consecutive int64 numbers from 0; None for None."""
    if sources is None:
        return None
    names = np.asarray(sources)
    if names.shape != (num_samples,):
        raise ValueError(f"sources must have shape ({num_samples},) to match the samples, got {names.shape}")
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


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


def as_flips(flips: Any, num_samples: int, mirrored: np.ndarray | None) -> np.ndarray:
    """Flip flags as a validated (N,) bool array, all False for None; a flag needs mirrored features."""
    if flips is None:
        return np.zeros(num_samples, bool)
    if isinstance(flips, torch.Tensor):
        flips = flips.detach().cpu().numpy()
    flips = np.asarray(flips)
    if flips.dtype != np.bool_:
        raise TypeError(f"flips must be booleans (True: mirror the sample), got dtype {flips.dtype}")
    if flips.shape != (num_samples,):
        raise ValueError(f"flips must have shape ({num_samples},) to match the samples, got {flips.shape}")
    if mirrored is None and flips.any():
        raise ValueError(
            f"flips mark {int(flips.sum())} samples as mirrored, but there are no mirrored features: "
            "pass mirrored=, the features of the mirrored images"
        )
    return flips


def as_mirrored(mirrored: Any, features: np.ndarray) -> np.ndarray | None:
    """Mirrored features as a validated float32 array of the same shape as the features, or None."""
    if mirrored is None:
        return None
    mirrored = as_features(mirrored, name="mirrored")
    if mirrored.shape != features.shape:
        raise ValueError(
            f"mirrored must have the shape {features.shape} of the features, got {mirrored.shape}: "
            "it holds the features of the same images, mirrored, in the same order"
        )
    return mirrored


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
            "neighbors must not list a sample as its own neighbour: search with exclude_self=True"
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

        Their rows of so many dimensions and their pairs take bounded memory; a class too large for that comes
        alone.
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

    Groups of up to 32 by plain differences; larger ones by matrix products of the centred rows in float64, so
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
