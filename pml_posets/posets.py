"""Posets: what sampler, miner, loss, trainer and plots read about a grouping of the samples.

A grouping gives every sample a surrogate class or none (label -1). From it follow the medoid that stands for
each class, and the Z nearest classes of each sample (section 3.2). The unassigned samples around a class,
ordered by distance to its medoid, are its poset.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ._classes import ClassMembers, check_neighbors, relabel
from ._io import atomic_write, read_npz
from ._nearest_classes import class_medoids, nearest_classes
from ._validation import (
    ArrayLike,
    as_codes,
    as_count,
    as_features,
    as_flips,
    as_integers,
    as_labels,
    as_mirrored,
    check_shape,
    checked,
)
from .neighbors.nearest import Backend, Method, Neighbors

__all__ = ["Posets", "medoids", "relabel"]

_FORMAT = 1  # of the file that save() writes


def medoids(
    features: ArrayLike, labels: Any, *, mirrored: ArrayLike | None = None, flips: Any = None
) -> np.ndarray:
    """The medoid of each class: the member with the smallest summed distance to all members.

    medoid_c = argmin over i in class c of sum over j in class c of ||x_i - x_j||, distances unsquared. A
    flipped member takes part with its mirrored row. Sums within one part in 10^6 of the smallest are tied,
    and the lower index wins, so that rounding does not decide.

    Args:
        features: (N, D) float32, in dataset order.
        labels: (N,) integers, -1 unassigned, else 0..C-1.
        mirrored: (N, D) float32, features of the mirrored images; None (default) without.
        flips: (N,) bool, True where a sample stands in its class mirrored; None (default): nowhere.

    Returns:
        (C,) int64 dataset indices; empty without classes.

    Raises:
        TypeError, ValueError: for labels or flips of the wrong kind, shapes that do not match, NaN features.

    Source: section 3.2 of the paper.
    Differs from the paper: the mirror images (the authors' code has them, the text does not).

    Example:
        >>> medoids(np.array([[0.0], [1.0], [5.0], [9.0]], np.float32), [0, 0, 0, -1])
        array([1])
    """
    features = as_features(features)
    mirrored = as_mirrored(mirrored, features)
    labels = as_labels(labels, len(features))
    return class_medoids(
        features, mirrored, as_flips(flips, len(features), mirrored), ClassMembers.of(labels)
    )


@dataclass(frozen=True, eq=False)
class Posets:
    """Surrogate classes, their medoids and the partial order of the samples around them, for one round.

    Everything is indexed by dataset index (samples) or class id (classes). `Posets.build` makes them; the
    constructor takes the finished arrays and checks them.

    Args:
        labels: (N,) int64, -1 for an unassigned sample, else its class in 0..C-1.
        medoids: (C,) int64, dataset index of the member that represents the class.
        nearest_classes: (N, Z) int64, the Z nearest classes by distance to their medoids, nearest first; an
            assigned sample's own class comes first whatever its distance. -1 where C < Z leaves a gap.
        nearest_distances: (N, Z) float32, Euclidean distances to those medoids; inf beside -1.
        flips: (N,) bool, True where the sample must be mirrored to match its class.
        round: the round of the joint optimization these belong to, from 0.

    Raises:
        TypeError, ValueError: if the arrays do not fit each other.

    Source: section 3.2, Eq. 1 of the paper.
    Differs from the paper: the nearest classes of assigned samples are kept too, for losses that take every
    sample as an anchor; `poset` lists the unassigned ones alone.

    Example:
        >>> features = np.array([[0.0], [0.2], [5.0], [5.2], [2.0]], np.float32)
        >>> posets = Posets.build(features, [0, 0, 1, 1, -1], num_nearest=2)
        >>> posets.medoids, posets.nearest_classes[4], posets.poset(1)
        (array([0, 2]), array([0, 1]), array([4]))
    """

    labels: np.ndarray
    medoids: np.ndarray
    nearest_classes: np.ndarray
    nearest_distances: np.ndarray
    flips: np.ndarray
    round: int = 0

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        labels = as_labels(labels, labels.shape[0] if labels.ndim else 1)
        num_samples, num_classes = labels.size, int(labels.max(initial=-1)) + 1
        medoids = as_integers(self.medoids, "medoids").astype(np.int64, copy=False)
        check_shape(medoids, "medoids", (num_classes,), ", one a class")
        if num_classes and (medoids.min() < 0 or medoids.max() >= num_samples):
            raise ValueError(f"medoids must be dataset indices in 0..{num_samples - 1}")
        if not np.array_equal(labels[medoids], np.arange(num_classes)):
            wrong = int(np.flatnonzero(labels[medoids] != np.arange(num_classes))[0])
            raise ValueError(f"the medoid of class {wrong} is sample {medoids[wrong]}, no member of it")
        nearest = as_integers(self.nearest_classes, "nearest_classes").astype(np.int64, copy=False)
        if nearest.ndim != 2 or len(nearest) != num_samples or nearest.shape[1] < 1:
            raise ValueError(f"nearest_classes must have shape ({num_samples}, Z >= 1), got {nearest.shape}")
        if nearest.min() < -1 or nearest.max() >= num_classes:
            raise ValueError(f"nearest_classes must hold class ids in 0..{num_classes - 1}, or -1")
        assigned = labels >= 0
        if not np.array_equal(nearest[assigned, 0], labels[assigned]):
            raise ValueError("nearest_classes must begin with an assigned sample's own class")
        distances = np.asarray(self.nearest_distances, np.float32)
        check_shape(distances, "nearest_distances", nearest.shape)
        padding = np.isinf(distances)
        if not np.array_equal(padding, nearest < 0) or not (distances >= 0).all():
            raise ValueError("nearest_distances must be finite and >= 0, but inf where nearest_classes is -1")
        flips = np.asarray(self.flips)
        if flips.dtype != np.bool_ or flips.shape != (num_samples,):
            raise ValueError(f"flips must be ({num_samples},) bool, got {flips.shape} {flips.dtype}")
        checked = (labels, medoids, nearest, distances, flips, as_count(self.round, "round", least=0))
        for name, value in zip(self.__dataclass_fields__, checked, strict=True):
            object.__setattr__(self, name, value)

    @classmethod
    def build(
        cls,
        features: ArrayLike,
        labels: Any,
        num_nearest: int = 2,
        *,
        mirrored: ArrayLike | None = None,
        flips: Any = None,
        sources: Any = None,
        neighbors: Neighbors | None = None,
        round: int = 0,
        method: Method = "exact",
        backend: Backend = "auto",
        device: str | torch.device = "cpu",
    ) -> Posets:
        """Medoids and nearest classes of labelled features.

        With mirrored features an unassigned sample takes the orientation in which it is nearer to its nearest
        medoid (kept in `flips`), and its Z nearest classes are those of that orientation; assigned samples
        keep the flips given. Memory beside the features: one copy of the medoids' rows, and bounded blocks.

        Args:
            features: (N, D) float32 array or tensor, in dataset order.
            labels: (N,) integers, -1 unassigned, else 0..C-1. All -1 is legal: no medoids, only padding.
            num_nearest: Z, from 1. Default 2; the paper has Z >= 2.
            mirrored: (N, D) float32, features of the mirrored images; None (default) without.
            flips: (N,) bool of the assigned samples, as `SurrogateGrouping.flips_`; None (default): none.
            sources: (N,) source of each sample, ints or strings: a class whose medoid is of a sample's own
                source is not among its nearest, unless it is its own class. None (default): all count.
            neighbors: what `search(features, k, sources=...)` found: a sample whose list shows which medoids
                are nearest needs no further search. The answer is the same if the lists are exact, else as
                good as they are. Not with mirrored features. None (default): all are searched for.
            round: the round of the joint optimization. Default 0.
            method, backend, device: of the search for the nearest medoids, see `pml_posets.neighbors.search`.

        Returns:
            The posets.

        Raises:
            TypeError, ValueError: for arrays that are wrong or do not match, or num_nearest < 1.
        """
        features = as_features(features)
        num_samples = len(features)
        mirrored = as_mirrored(mirrored, features)
        labels = as_labels(labels, num_samples)
        flips = as_flips(flips, num_samples, mirrored)
        num_nearest = as_count(num_nearest, "num_nearest")
        codes = as_codes(sources, num_samples)
        if neighbors is not None:
            check_neighbors(neighbors, num_samples, mirrored is not None)
            if mirrored is not None:
                raise ValueError("neighbors do not tell the nearest medoids of mirrored features: give none")
        with checked(features, mirrored):
            found = class_medoids(features, mirrored, flips, ClassMembers.of(labels))
            how = {"method": method, "backend": backend, "device": device}
            given = (features, mirrored, np.where(labels >= 0, flips, False), labels, found)
            nearest, distances, flips = nearest_classes(*given, num_nearest, codes, neighbors, how)
        return cls(labels, found, nearest, distances, flips, round)

    @property
    def num_samples(self) -> int:
        """N."""
        return self.labels.size

    @property
    def num_classes(self) -> int:
        """C."""
        return self.medoids.size

    @property
    def num_nearest(self) -> int:
        """Z, the width of nearest_classes."""
        return self.nearest_classes.shape[1]

    @cached_property
    def sizes(self) -> np.ndarray:
        """(C,) int64, members of each class, its medoid included."""
        return self._members.sizes

    @cached_property
    def unassigned(self) -> np.ndarray:
        """(U,) int64, ascending dataset indices of the samples without a class."""
        return np.flatnonzero(self.labels < 0)

    @cached_property
    def is_medoid(self) -> np.ndarray:
        """(N,) bool, True for the medoids."""
        flags = np.zeros(self.num_samples, bool)
        flags[self.medoids] = True
        return flags

    def members(self, c: int) -> np.ndarray:
        """Ascending dataset indices of class c, its medoid included."""
        c = self._class_id(c)
        return self._members.order[self._members.starts[c] : self._members.starts[c + 1]]

    def poset(self, c: int) -> np.ndarray:
        """Unassigned samples that have class c among their Z nearest, nearest to its medoid first (Eq. 1)."""
        c = self._class_id(c)
        order, starts = self._posets
        return order[starts[c] : starts[c + 1]]

    @cached_property
    def _members(self) -> ClassMembers:
        return ClassMembers.of(self.labels)

    @cached_property
    def _posets(self) -> tuple[np.ndarray, np.ndarray]:
        rows = np.repeat(self.unassigned, self.num_nearest)
        classes = self.nearest_classes[self.unassigned].reshape(-1)
        distances = self.nearest_distances[self.unassigned].reshape(-1)
        rows, classes, distances = (values[classes >= 0] for values in (rows, classes, distances))
        order = np.lexsort((rows, distances, classes))
        starts = np.concatenate([[0], np.cumsum(np.bincount(classes, minlength=self.num_classes))])
        return rows[order], starts

    def _class_id(self, c: int) -> int:
        if isinstance(c, bool) or not isinstance(c, (int, np.integer)) or not 0 <= c < self.num_classes:
            raise ValueError(f"c must be a class id in 0..{self.num_classes - 1}, got {c!r}")
        return int(c)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All fields by name, as arrays (round too): for a checkpoint. `from_arrays` takes them back."""
        return {name: np.asarray(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any]) -> Posets:
        """From what `to_arrays` gave; a ValueError if a field is missing or they do not fit each other."""
        missing = [name for name in cls.__dataclass_fields__ if name not in arrays]
        if missing:
            raise ValueError(f"posets lack the fields {', '.join(missing)}")
        fields: dict[str, Any] = {name: np.asarray(arrays[name]) for name in cls.__dataclass_fields__}
        if fields["round"].shape != () or fields["round"].dtype.kind not in "iu":
            raise ValueError("round must be one integer")
        fields["round"] = int(fields["round"])
        return cls(**fields)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one .npz file, whole or not at all.

        Raises:
            OSError: if the folder is missing, full or not writable; an older file stays as it was.
        """
        content: dict[str, Any] = {"format": np.int64(_FORMAT), **self.to_arrays()}
        with atomic_write(path) as file:
            np.savez_compressed(file, **content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Posets:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: if it does not exist.
            ValueError: if it is damaged, half-written, or no file of posets.
        """
        try:
            arrays = read_npz(path)
            if int(arrays.pop("format", np.int64(-1))) != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}, the one this version reads")
            return cls.from_arrays(arrays)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is no whole file of posets ({error}): build them again") from error

    def equals(self, other: object) -> bool:
        """True if the other object is posets with the same content."""
        if not isinstance(other, Posets):
            return False
        mine, theirs = self.to_arrays(), other.to_arrays()
        return all(np.array_equal(mine[name], theirs[name]) for name in mine)
