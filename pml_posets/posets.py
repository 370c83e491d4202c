"""Posets: what sampler, miner, loss, trainer and plots read about a grouping of the samples.

A grouping gives every sample a surrogate class or none (label -1). This room adds what section 3.2 of the
paper derives from it: the medoid that stands for each class, and the Z nearest classes of each sample. The
unassigned samples around a class, ordered by distance to its medoid, are its poset.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ._classes import BLOCK_BYTES, ClassMembers, check_neighbors, oriented, relabel, row_sums
from ._io import atomic_write
from ._validation import ArrayLike, as_codes, as_count, as_features, as_flips, as_labels, as_mirrored
from .neighbors.nearest import Backend, Method, Neighbors, search

__all__ = ["Posets", "medoids", "relabel"]

_FORMAT = 1  # of the file that save() writes
_DAMAGE = (ValueError, TypeError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)
_TIE = 1e-6  # sums that differ by less than this part of the smallest are tied


def medoids(
    features: ArrayLike, labels: Any, *, mirrored: ArrayLike | None = None, flips: Any = None
) -> np.ndarray:
    """The medoid of each class: the member with the smallest summed distance to all members.

    medoid_c = argmin over i in class c of sum over j in class c of ||x_i - x_j||, distances unsquared. A
    flipped member takes part with its mirrored row. Sums within one part in 10^6 of the smallest are tied,
    and the lower index wins, so that the choice does not hang on rounding.

    Args:
        features: (N, D) float32, in dataset order.
        labels: (N,) integers, -1 unassigned, else 0..C-1.
        mirrored: (N, D) float32, features of the mirrored images; None (default) without.
        flips: (N,) bool, True where a sample stands in its class mirrored; None (default): nowhere.

    Returns:
        (C,) int64 dataset indices; empty without classes.

    Raises:
        TypeError: for labels or flips of the wrong kind.
        ValueError: for shapes that do not match, NaN features, gaps in the labels.

    Source: "Deep Unsupervised Similarity Learning using Partially Ordered Sets" (CVPR 2017), section 3.2.
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


def class_medoids(
    features: np.ndarray, mirrored: np.ndarray | None, flips: np.ndarray, members: ClassMembers
) -> np.ndarray:
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


@dataclass(frozen=True, eq=False)
class Posets:
    """Surrogate classes, their medoids and the partial order of the samples around them, for one round.

    Everything is indexed by dataset index (samples) or class id (classes). Build it with `Posets.build`; the
    constructor takes the finished arrays and checks them.

    Args:
        labels: (N,) int64, -1 for an unassigned sample, else its class in 0..C-1.
        medoids: (C,) int64, dataset index of the member that stands for the class.
        nearest_classes: (N, Z) int64, the Z nearest classes by distance to their medoids, nearest first; an
            assigned sample's own class comes first whatever its distance. -1 where C < Z leaves a gap.
        nearest_distances: (N, Z) float32, Euclidean distances to those medoids; inf beside -1.
        flips: (N,) bool, True where the sample is to be mirrored before it meets its class.
        round: the round of the joint optimisation these belong to, from 0.

    Raises:
        TypeError, ValueError: if the arrays do not fit each other.

    Source: "Deep Unsupervised Similarity Learning using Partially Ordered Sets" (CVPR 2017), sec. 3.2, Eq. 1.
    Differs from the paper: the nearest classes of assigned samples are kept too (own class first), for losses
    that take every sample as an anchor; `poset` lists the unassigned ones alone, as in the paper.

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
        medoids = _integers(self.medoids, "medoids")
        if medoids.shape != (num_classes,):
            raise ValueError(f"medoids must have shape ({num_classes},), one a class, got {medoids.shape}")
        if num_classes and (medoids.min() < 0 or medoids.max() >= num_samples):
            raise ValueError(f"medoids must be dataset indices in 0..{num_samples - 1}")
        if not np.array_equal(labels[medoids], np.arange(num_classes)):
            wrong = int(np.flatnonzero(labels[medoids] != np.arange(num_classes))[0])
            raise ValueError(f"the medoid of class {wrong} is sample {medoids[wrong]}, no member of it")
        nearest = _integers(self.nearest_classes, "nearest_classes")
        if nearest.ndim != 2 or len(nearest) != num_samples or nearest.shape[1] < 1:
            raise ValueError(f"nearest_classes must have shape ({num_samples}, Z >= 1), got {nearest.shape}")
        if nearest.min() < -1 or nearest.max() >= num_classes:
            raise ValueError(f"nearest_classes must hold class ids in 0..{num_classes - 1}, or -1")
        assigned = labels >= 0
        if not np.array_equal(nearest[assigned, 0], labels[assigned]):
            raise ValueError("nearest_classes must begin with an assigned sample's own class")
        distances = np.asarray(self.nearest_distances, np.float32)
        if distances.shape != nearest.shape:
            raise ValueError(f"nearest_distances must have shape {nearest.shape}, got {distances.shape}")
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
                source is not among its nearest, unless it is its own class. Frames of one video are near
                because they share person and scene. None (default): all classes count.
            neighbors: what `search(features, k, sources=...)` found, if that is there already: a sample whose
                list shows which medoids are nearest needs no further search. The answer is the same if the
                lists are exact, else as good as they are. Not with mirrored features. None (default): all are
                searched for.
            round: the round of the joint optimisation. Default 0.
            method: of the search for the nearest medoids, see `pml_posets.neighbors.search`. Default "exact".
            backend: of the search, see `pml_posets.neighbors.search`.
            device: of the search. Default "cpu".

        Returns:
            The posets.

        Raises:
            TypeError, ValueError: for features, labels or flips that are wrong or do not match, or
                num_nearest < 1.
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
        found = class_medoids(features, mirrored, flips, ClassMembers.of(labels))
        nearest = np.full((num_samples, num_nearest), -1, np.int64)
        distances = np.full((num_samples, num_nearest), np.inf, np.float32)
        flips = np.where(labels >= 0, flips, False)
        if found.size:
            representatives = oriented(features, mirrored, flips, found)  # (C, D)
            k = min(int(num_nearest), found.size)
            settings: dict[str, Any] = {"method": method, "backend": backend, "device": device}
            if codes is not None:
                settings["sources"] = codes[found]
            open_ = np.arange(num_samples)
            if neighbors is not None:
                nearest[:, :k], distances[:, :k], known = _nearest_listed(neighbors, labels, found, k)
                open_ = np.flatnonzero(~known)
            whole = mirrored is None and open_.size == num_samples
            for rows in _row_chunks(open_, features.shape[1], whole):
                if codes is not None:
                    settings["query_sources"] = codes[rows]
                queries = features if whole else oriented(features, mirrored, flips, rows)
                got = search(representatives, k, query_features=queries, **settings)
                nearest[rows, :k], distances[rows, :k] = got.indices, got.distances
                free = rows[labels[rows] < 0]
                if mirrored is None or not free.size:
                    continue
                if codes is not None:
                    settings["query_sources"] = codes[free]
                got = search(representatives, k, query_features=mirrored[free], **settings)
                flips[free] = got.distances[:, 0] < distances[free, 0]
                turned = flips[free]
                nearest[free[turned], :k] = got.indices[turned]
                distances[free[turned], :k] = got.distances[turned]
            _own_class_first(features, mirrored, flips, labels, representatives, nearest, distances)
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
        """From what `to_arrays` gave; checked like the constructor's arguments.

        Raises:
            ValueError: if a field is missing or they do not fit each other.
        """
        missing = [name for name in cls.__dataclass_fields__ if name not in arrays]
        if missing:
            raise ValueError(f"posets lack the fields {', '.join(missing)}")
        fields: dict[str, Any] = {name: np.asarray(arrays[name]) for name in cls.__dataclass_fields__}
        if fields["round"].shape != () or fields["round"].dtype.kind not in "iu":
            raise ValueError("round must be one integer")
        fields["round"] = int(fields["round"])
        return cls(**fields)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one .npz file, whole or not at all (a temporary file beside it is renamed).

        Args:
            path: the file, overwritten if it is there; its name is kept as it is.

        Raises:
            OSError: if the folder is missing, full or not writable; an older file stays as it was.
        """
        content: dict[str, Any] = {"format": np.int64(_FORMAT), **self.to_arrays()}
        with atomic_write(path) as file:
            np.savez_compressed(file, **content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Posets:
        """Read a file that `save` wrote.

        Args:
            path: the file.

        Returns:
            The posets, equal to those saved.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if it is damaged, half-written, or no file of posets.
        """
        try:
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise ValueError("it is a single array")
            with loaded as file:
                arrays = {name: file[name] for name in file.files}
            if int(arrays.pop("format", np.int64(-1))) != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}, the one this version reads")
            return cls.from_arrays(arrays)
        except _DAMAGE as error:
            raise ValueError(f"{path} is no whole file of posets ({error}): build them again") from error

    def equals(self, other: object) -> bool:
        """True if the other object is posets with the same content."""
        if not isinstance(other, Posets):
            return False
        mine, theirs = self.to_arrays(), other.to_arrays()
        return all(np.array_equal(mine[name], theirs[name]) for name in mine)


def _integers(values: Any, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.size and values.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {values.dtype}")
    return values.astype(np.int64, copy=False)


def _row_chunks(rows: np.ndarray, dim: int, whole: bool) -> Iterator[np.ndarray]:
    """Row indices, as many at a time as take about 256 MiB, or all."""
    step = max(1, rows.size if whole else (1 << 28) // (4 * dim))
    for first in range(0, rows.size, step):
        yield rows[first : first + step]


def _nearest_listed(
    neighbors: Neighbors, labels: np.ndarray, medoid: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, k) classes of the nearest medoids by the lists, (N, k) distances, (N,) whether no other is nearer.

    A sample's own class, one of the k, is left out.
    """
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
    listed, there = nearest[assigned], distances[assigned]
    others = listed != own[:, None]
    # Stable sort: the others keep their order, and the own class, if listed, goes last and is cut off.
    order = np.argsort(~others, axis=1, kind="stable")[:, : listed.shape[1] - 1]
    nearest[assigned, 1:] = np.take_along_axis(listed, order, axis=1)
    distances[assigned, 1:] = np.take_along_axis(there, order, axis=1)
    nearest[assigned, 0], distances[assigned, 0] = own, own_distances
