"""Surrogate classes: compact groups of mutually similar samples (section 3.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .._validation import ArrayLike, as_codes, as_count, as_features, as_flag, as_mirrored, as_real
from ..neighbors.nearest import Backend, Method, Neighbors
from ._base import NeighborGrouping
from ._groups import Groups, Space, grow
from ._merging import disjoint, merge, unique_groups
from ._radii import clear_ends, clear_radii, top_radii

__all__ = ["SurrogateGrouping"]


@dataclass(eq=False, repr=False)
class SurrogateGrouping(NeighborGrouping):
    """Group samples into small, compact, mutually similar surrogate classes; the rest stays unassigned.

    1. Neighbors: the `max_neighbors` nearest of each sample x_i, of other sources if sources are given,
       each in the better of its two orientations if mirrored features are given.
    2. Radius r_i: the distance within which the nearest `top_fraction` of all (other sources') samples lie,
       or the `min_neighbors` nearest, if these are more. Where the distances of the neighbors show a clear
       gap, r_i ends there; elsewhere it is bounded by the median radius (see `contrast`).
    3. Growth: a group begins at each x_i and takes, one at a time, the neighbor whose farthest member of
       the group is nearest, in units of the smaller of both radii, as long as every pair (j, k) of the group
       is mutually similar: ||x_j - x_k|| <= min(r_j, r_k). It never takes two samples of one source.
    4. Merging: highly overlapping groups merge, agglomeratively, while their union stays compact.
    5. One label a sample: the group in which its mean similarity to the other members is highest keeps it.
       Groups left with fewer than min_size dissolve, the less similar half of them at a time, which gives
       their samples back to the other groups that hold them.
    6. Steering: where there are fewer classes than num_classes, or larger ones than mean_size on average,
       steps 4 and 5 are tried with smaller groups; where they are smaller than mean_size, step 5 is done
       with larger limits than min_size. Then the num_classes most compact classes stay, and classes lose
       their least similar members until they are no larger than mean_size on average.

    Similarity is exp(-distance / scale), a group's compactness its mean over the pairs of the group.

    Args:
        num_classes: classes to keep, from 1; None (default) keeps all. The paper: 20,000. Fewer come out
            where the samples do not make as many.
        min_size: t, members of a class at least, from 2. Default 3.
        max_size: members of a group at most, while growing and when merged. Default 32.
        mean_size: members of a class on average, between min_size and max_size; None (default) leaves what
            comes out. The paper: 8. If both are given and cannot both be had, num_classes comes first.
        top_fraction: share of the samples that count as similar to a sample, in (0, 1]. None (default):
            min_neighbors alone count; the paper: 0.05. Smaller makes fewer, smaller, purer classes.
        min_neighbors: nearest samples that count as similar at least, from 1. Default 12. Fewer make purer
            classes of fewer samples. With sources and no top_fraction as many as show this many sources.
        max_neighbors: neighbors that are candidates for a sample's group, from min_size - 1. None
            (default): 32, or max_size if that is more.
        merge_overlap: share of the smaller group from which two groups overlap highly, in (0, 1]. Default
            0.5.
        max_widening: how much wider than a group its union with the next sample (by diameter, from min_size
            on) or group (by mean distance, of the tighter one) may be, from 1. Default 2.0; np.inf: no rule.
        contrast: ratio of two distances that is clear, from 1. A radius ends at the widest gap in the list of
            neighbors, behind min_size - 1 of them or more, if the next one is at least this many times as
            far. All other radii are at most contrast times the median radius. Default 1.25; np.inf: no rule.
        scale: of the similarity, above 0. Default and paper: 1.0.
        one_per_source: heed sources, if given. Default True; False ignores them.
        method, backend: of the neighbor search, as for `search`. Default "exact", "auto".
        device: where all of it is computed. Default "cpu".
        random_state: seed, from 0. Default 0. The same seed and input give the same labels.

    Attributes:
        labels_: (N,) int64, -1 for unassigned, else 0..num_classes_ - 1, by each class's lowest index.
        flips_: (N,) bool, True where a sample stands in its class mirrored, at most half of a class.
        num_classes_: C. It is 0, and all labels are -1, if no group of min_size forms.
        compactness_: (C,) float64, mean similarity over the pairs of each class.
        radii_: (N,) float32, r_i.
        max_size_: the size of groups that was used, below max_size where step 6 asked for it.
        neighbors_: the Neighbors of step 1, to be passed on.
        n_features_in_: D.

    Raises:
        TypeError, ValueError: by `fit`, for an invalid option or array, or too few samples.
        MemoryError: before the search, if it needs more memory than the machine has in all; a
            ResourceWarning, if it seems to need more than is available.

    Source: section 3.1 of the paper; sources and mirror images are in the authors' code only.
    Differs from the paper: 12 neighbors count; contrast, max_neighbors and max_size are additions (without
        contrast classes hold more strangers); many pairs merge in a pass; the text leaves open steps 5 and 6,
        and which constituent the stopping rule means (here the tighter one).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> centers = rng.normal(size=(10, 1, 8))
        >>> features = (centers + 0.01 * rng.normal(size=(10, 6, 8))).reshape(60, 8)
        >>> labels = SurrogateGrouping(top_fraction=0.1).fit_predict(features)
        >>> labels.reshape(10, 6)[2], len(set(labels))
        (array([2, 2, 2, 2, 2, 2]), 10)
    """

    num_classes: int | None = None
    min_size: int = 3
    max_size: int = 32
    mean_size: float | None = None
    top_fraction: float | None = None
    min_neighbors: int = 12
    max_neighbors: int | None = None
    merge_overlap: float = 0.5
    max_widening: float = 2.0
    contrast: float = 1.25
    scale: float = 1.0
    one_per_source: bool = True
    method: Method = "exact"
    backend: Backend = "auto"
    device: str | torch.device = "cpu"
    random_state: int = 0

    def fit(
        self,
        features: ArrayLike,
        y: Any = None,
        *,
        sources: Any = None,
        mirrored: ArrayLike | None = None,
        neighbors: Neighbors | None = None,
    ) -> SurrogateGrouping:
        """Group the samples; see the class.

        Args:
            features: (N, D) float32 array or tensor, in dataset order, N >= min_size.
            y: ignored.
            sources: (N,) ints or strings, for example the video of each frame; None (default): no rule.
            mirrored: (N, D) float32, features of the mirrored images; None (default): no mirroring.
            neighbors: what `find_neighbors` of the same arguments found, or `search` with another k, which
                then stands in for max_neighbors. None (default) searches.

        Returns:
            The estimator.
        """
        table, mirror, codes = self._inputs(features, sources, mirrored)
        num_samples, self.n_features_in_ = table.shape
        self.neighbors_ = neighbors = self._listed(table, mirror, codes, neighbors)
        space = Space.of(table, mirror, self.scale, self.device)
        with torch.no_grad(), torch.autocast(space.table.device.type, enabled=False):
            ends = clear_ends(neighbors, self.min_size, self.contrast)
            options = (self.top_fraction, self.min_neighbors, self.random_state)
            radii = top_radii(space, neighbors, codes, *options, ends)
            self.radii_ = clear_radii(radii, ends, self.contrast)
            limits = (self.min_size, self.max_size, self.max_widening)
            grown = grow(space, neighbors, self.radii_, codes, *limits)
            classes = self._trim(self._most_compact(self._steered(grown, space, codes), space), space)
            classes = classes.pick(np.argsort(classes.lowest, kind="stable")).upright()
            self.compactness_ = classes.means(space)[0]
        self.num_classes_ = len(classes.members)
        self.labels_ = np.full(num_samples, -1, np.int64)
        self.flips_ = np.zeros(num_samples, bool)
        filled = classes.members >= 0
        self.labels_[classes.members[filled]] = np.nonzero(filled)[0]
        self.flips_[classes.members[filled]] = classes.flips[filled]
        return self

    def fit_predict(
        self,
        features: ArrayLike,
        y: Any = None,
        *,
        sources: Any = None,
        mirrored: ArrayLike | None = None,
        neighbors: Neighbors | None = None,
    ) -> np.ndarray:
        """As `fit`, but returns `labels_`."""
        return self.fit(features, y, sources=sources, mirrored=mirrored, neighbors=neighbors).labels_

    def _inputs(
        self, features: ArrayLike, sources: Any, mirrored: ArrayLike | None
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        self._check()
        table = as_features(features)
        if len(table) < self.min_size:
            raise ValueError(
                f"features hold {len(table)} samples (n_samples={len(table)}), fewer than a class of "
                f"min_size={self.min_size}: give more samples or lower min_size"
            )
        codes = as_codes(sources, len(table))
        return table, as_mirrored(mirrored, table), codes if self.one_per_source else None

    def lists_nearest(self, features: np.ndarray, sources: Any) -> bool:
        """Whether `find_neighbors` lists the nearest samples that are not of a sample's own source."""
        return sources is None or self.one_per_source

    def _check(self) -> None:
        least = {"min_size": 2, "max_size": self.min_size, "min_neighbors": 1, "random_state": 0}
        for name, low in least.items():
            as_count(getattr(self, name), name, low)
        if self.max_neighbors is not None:
            as_count(self.max_neighbors, "max_neighbors", self.min_size - 1)
        if self.num_classes is not None:
            as_count(self.num_classes, "num_classes")
        as_flag(self.one_per_source, "one_per_source")
        for name in ("max_widening", "contrast"):
            value = getattr(self, name)
            if not (isinstance(value, float | np.floating) and value == np.inf):
                as_real(value, name, low=1)
        for name, high in {"top_fraction": 1, "merge_overlap": 1, "scale": np.inf}.items():
            if name != "top_fraction" or self.top_fraction is not None:
                as_real(getattr(self, name), name, low=0, high=high, open_low=True)
        size = None if self.mean_size is None else as_real(self.mean_size, "mean_size")
        if size is not None and not self.min_size <= size <= self.max_size:
            raise ValueError(
                f"mean_size must lie between min_size={self.min_size} and max_size={self.max_size}, "
                f"got {size}"
            )

    def _steered(self, grown: Groups, space: Space, codes: np.ndarray | None) -> Groups:
        """Classes from groups of the size that comes nearest to what is asked for (step 6)."""

        def made(size: int) -> tuple[Groups, Groups, np.ndarray]:
            if size not in tried:
                same = (other for other, largest in needed.items() if largest <= min(other, size))
                other = next(same, size)  # where nothing was cut off, other limits change nothing
                if other == size:
                    tried[size], needed[size] = self._classes(grown, size, space, codes)
                tried[size] = tried[other]
            return tried[size]

        def mean(size: int) -> float:
            return float(made(size)[0].sizes.mean()) if len(made(size)[0].members) else 0.0

        tried: dict[int, tuple[Groups, Groups, np.ndarray]] = {}
        needed: dict[int, int] = {}  # size to the largest that a group would have had without it
        chosen = self.max_size
        if self.mean_size is not None and mean(chosen) > self.mean_size:
            low = math.ceil(self.mean_size)  # the smallest size whose classes are not too small
            while low < chosen:
                size = (low + chosen) // 2
                low, chosen = (low, size) if mean(size) >= self.mean_size else (size + 1, chosen)
        wanted = self.num_classes or 0
        if len(made(chosen)[0].members) < wanted:
            # The largest size that gives enough classes, or the one that gives most.
            low, high = self.min_size, chosen - 1
            while low <= high:
                size = (low + high) // 2
                enough = len(made(size)[0].members) >= wanted
                low, high = (size + 1, high) if enough else (low, size - 1)
            counts = {size: min(len(made(size)[0].members), wanted) for size in tried}
            chosen = max(counts, key=lambda size: (counts[size], size))
        self.max_size_ = chosen
        classes, groups, score = made(chosen)
        for least in range(self.min_size + 1, chosen + 1):
            if self.mean_size is None or not len(classes.members) or classes.sizes.mean() >= self.mean_size:
                break
            larger = disjoint(groups, score, least)
            if len(larger.members) < max(wanted, 1):
                break
            classes = larger
        return classes

    def _classes(
        self, grown: Groups, size: int, space: Space, codes: np.ndarray | None
    ) -> tuple[tuple[Groups, Groups, np.ndarray], int]:
        """Disjoint classes from the groups grown, each cut off at the size, the merged groups and scores;
        also the largest size that a group had before it was cut off.
        """
        groups = grown.first(size)
        large = groups.sizes >= self.min_size
        owner = np.where(large, np.cumsum(large) - 1, -1)
        groups, owner = unique_groups(groups.pick(large), owner)
        options = {"overlap": self.merge_overlap, "widening": self.max_widening}
        groups, largest = merge(groups, owner, space, max_size=size, codes=codes, **options)
        score = groups.measure(space)[0]
        return (disjoint(groups, score, self.min_size), groups, score), max(largest, grown.members.shape[1])

    def _most_compact(self, classes: Groups, space: Space) -> Groups:
        if self.num_classes is None or len(classes.members) <= self.num_classes:
            return classes
        order = np.lexsort((classes.lowest, -classes.means(space)[0]))
        return classes.pick(order[: self.num_classes])

    def _trim(self, classes: Groups, space: Space) -> Groups:
        """Drop the least similar members of all classes, none below min_size, down to the mean size."""
        if self.mean_size is None or not len(classes.members):
            return classes
        sizes = classes.sizes
        surplus = int(sizes.sum() - np.ceil(self.mean_size * len(sizes)))
        if surplus <= 0:
            return classes
        filled = classes.members >= 0
        score = np.where(filled, classes.measure(space)[0], np.inf)
        order = np.argsort(score, axis=1, kind="stable")  # (C, S), least similar first
        rank = np.argsort(order, axis=1, kind="stable")
        loose = np.flatnonzero((filled & (rank < (sizes - self.min_size)[:, None])).reshape(-1))
        dropped = loose[np.argsort(score.reshape(-1)[loose], kind="stable")[:surplus]]
        members, flips = classes.members.copy(), classes.flips.copy()
        members.reshape(-1)[dropped], flips.reshape(-1)[dropped] = -1, False
        return Groups(members, flips).packed()
