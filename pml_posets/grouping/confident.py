"""Sure groups: classes of the few samples whose nearest neighbors are certainly alike (section 3.1)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .._clips import Clips, as_times
from .._validation import ArrayLike, as_codes, as_count, as_flag, as_mirrored, as_real, unit_rows
from ..neighbors.nearest import Backend, Method, Neighbors
from ._base import NeighborGrouping

__all__ = ["ConfidentGrouping"]

_BLOCK_NUMBERS = 2**24  # gathered at a time


class Links(NamedTuple):
    """P pairs: lower and higher index, whether the first is to be mirrored, and similarity."""

    first: np.ndarray
    second: np.ndarray
    flip: np.ndarray
    value: np.ndarray = np.zeros(0, np.float32)

    @classmethod
    def between(cls, neighbors: Neighbors) -> Links:
        """The pairs of which one is on the other's list, each once."""
        num_samples, k = neighbors.indices.shape
        sample, other = np.repeat(np.arange(num_samples), k), neighbors.indices.ravel()
        sample, other = sample[other >= 0], other[other >= 0]
        pair = np.unique(np.minimum(sample, other) * num_samples + np.maximum(sample, other))
        return cls(pair // num_samples, pair % num_samples, np.zeros(len(pair), bool))

    def pick(self, which: np.ndarray) -> Links:
        """Some of the pairs."""
        return Links(*(part[which] for part in self))

    def both_ways(self) -> tuple[np.ndarray, ...]:
        """Each pair from either end: sample, other, similarity."""
        ends = np.r_[self.first, self.second], np.r_[self.second, self.first]
        return *ends, np.r_[self.value, self.value]

    def among_best(self, num_samples: int, count: int) -> np.ndarray:
        """(P,) bool, which are among the `count` most similar of both their samples."""
        sample, other, similarity = self.both_ways()
        order = np.lexsort((other, -similarity, sample))
        counts = np.bincount(sample, minlength=num_samples)
        rank = np.empty(len(sample), np.int64)
        rank[order] = np.arange(len(sample)) - (np.cumsum(counts) - counts)[sample[order]]
        return (rank[: len(self.first)] < count) & (rank[len(self.first) :] < count)

    def measured(
        self, rows: np.ndarray, turned: np.ndarray | None, clips: Clips | None, window: int
    ) -> Links:
        """With their cosines, along clips if there are any."""
        window = window if clips is not None else 0
        value = np.zeros(len(self.first), np.float32)
        step = max(1, _BLOCK_NUMBERS // rows.shape[1])
        for start in range(0, len(value), step):
            part = slice(start, start + step)
            for d in range(-window, window + 1):
                i, j = self.first[part], self.second[part]
                if clips is not None and d:
                    i, j = clips.shift(i, d), clips.shift(j, d)
                left = rows[i]
                if turned is not None:
                    left[self.flip[part]] = turned[i[self.flip[part]]]
                value[part] += np.einsum("pd,pd->p", left, rows[j])
        return self._replace(value=value / (2 * window + 1))


@dataclass(eq=False, repr=False)
class ConfidentGrouping(NeighborGrouping):
    """Group only samples that are surely alike, by one threshold for all; the rest stays unassigned.

    1. Candidates: the `max_neighbors` nearest of each sample, of other sources if sources are given, each in
       the better of its two orientations if mirrored features are given.
    2. Similarity: the cosine of a pair; with times and `window` k above 0 its mean along both clips,

           s(i, j) = sum_d cos(x_{i + d}, x_{j + d}) / (2 k + 1),  d = -k, ..., k,

       where i + d is the frame d steps later in the clip of i. At the end of a clip its last frame repeats.
    3. Threshold: `min_similarity`, or the one that the nearest neighbors of a share `coverage` of all
       samples reach. One threshold holds for all samples: a threshold for each sample would also keep pairs
       that are not alike.
    4. Sure links: the candidates at or above it, and with `mutual` only pairs of which each is among the
       other's `mutual` most similar.
    5. Paths: with times and `path` above 0 a sure link (i, j) adds the links (i + d, j + d), d = 1, 2, ...
       and -1, -2, ..., up to `path` steps, as long as they are no less similar than `follow` times the
       threshold.
    6. Growth: links are taken from the most similar down. Each unites the classes of its two samples, where
       the union has no more than `max_size` members, none of them in two orientations, and at least a share
       `linkage` of its pairs across are links themselves.
    7. Classes with fewer than `min_size` members dissolve.

    Args:
        coverage: share of the samples whose nearest neighbor counts as sure, in (0, 1]. Default 0.1. Smaller
            is purer. Not used where min_similarity is given.
        min_similarity: the threshold itself, a cosine in [-1, 1]; None (default): by coverage.
        mutual: m, a link must be among the m most similar candidates of both its samples; 0 (default)
            demands nothing. With 1 classes are purer, fewer and mostly pairs.
        window: k, steps in time to either side that a similarity is averaged over, from 0. Default 4, where
            times are given.
        path: how many steps a sure link is followed along both clips, from 0. Default 4, where times are
            given.
        follow: share of the threshold that followed pairs must reach, in [0, 1]. Default 0.9.
        linkage: share of the pairs between two classes that must be links to unite them, in [0, 1]. 0 is
            single linkage, 1 complete linkage. Default 0.5.
        min_size: members of a class at least, from 2. Default 2.
        max_size: members of a class at most, from min_size. Default 16.
        one_per_source: a class holds one sample of a source at most, if sources are given. Default False:
            two frames of a source can be in one class, where both are surely like a frame of another
            source.
        max_neighbors: candidates of a sample, from 1. Default 32.
        max_step: samples of one source whose times lie farther apart belong to two clips, above 0; None
            (default): twice the median step between successive times of a source.
        method, backend, device: of the neighbor search, as for `search`. Default "exact", "auto", "cpu".

    Attributes:
        labels_: (N,) int64, -1 for unassigned, else 0..num_classes_ - 1, by each class's lowest index.
        flips_: (N,) bool, True where a sample stands in its class mirrored, at most half of a class.
        num_classes_: C. It is 0, and all labels are -1, if no link is sure.
        threshold_: the similarity from which a link is sure.
        nearest_similarity_: (N,) float32, similarity of each sample and its most similar candidate, -inf
            where there is none: what to look at to choose a threshold.
        nearest_: (N,) int64, that candidate; -1 where there is none.
        links_: (L, 2) int64, sure links and those on their paths, lower index first, by falling similarity.
        link_similarity_: (L,) float32.
        link_flips_: (L,) bool, True where one of the two is to be mirrored.
        neighbors_: the Neighbors of step 1, to be passed on.

    Raises:
        TypeError, ValueError: by `fit`, for an invalid option or array, or times without sources.
        MemoryError: before the search, if its neighbor lists cannot fit.

    Source: section 3.1 of the paper: compact, reliable classes, all other samples unassigned; paths as in
        "Unsupervised Video Understanding by Reconciliation of Posture Similarities" (ICCV 2017).
    Differs from the paper: similarity is a cosine; one threshold holds for all samples, where the paper takes
        the nearest 5 % of each; classes grow by links, not around each sample; time, paths (of equal steps
        from one pair, where those of ICCV 2017 are optimal over clips) and coverage are additions.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> features = rng.normal(size=(60, 16))
        >>> features[30:36] = features[:6] + 0.1 * rng.normal(size=(6, 16))
        >>> labels = ConfidentGrouping(coverage=0.2).fit_predict(features)
        >>> labels[:7], labels[30:37]
        (array([ 0,  1,  2,  3,  4,  5, -1]), array([ 0,  1,  2,  3,  4,  5, -1]))
    """

    coverage: float = 0.1
    min_similarity: float | None = None
    mutual: int = 0
    window: int = 4
    path: int = 4
    follow: float = 0.9
    linkage: float = 0.5
    min_size: int = 2
    max_size: int = 16
    one_per_source: bool = False
    max_neighbors: int = 32
    max_step: float | None = None
    method: Method = "exact"
    backend: Backend = "auto"
    device: str | torch.device = "cpu"

    def fit(
        self,
        features: ArrayLike,
        y: Any = None,
        *,
        sources: Any = None,
        mirrored: ArrayLike | None = None,
        times: Any = None,
        neighbors: Neighbors | None = None,
    ) -> ConfidentGrouping:
        """Group the samples; see the class.

        Args:
            features: (N, D) float32 array or tensor, in dataset order, N >= 2; no row of zeros.
            y: ignored.
            sources: (N,) ints or strings, for example the video of each frame; None (default): every sample
                is its own.
            mirrored: (N, D) float32, features of the mirrored images; None (default): no mirroring.
            times: (N,) numbers, when a sample was seen within its source: frame numbers, seconds. None
                (default): not known, window and path do nothing. A step in time is from one sample to the
                next of its clip, however long it lasts.
            neighbors: what `find_neighbors` of the same arguments found, or `search` of unit rows with
                another k, which then stands in for max_neighbors. None (default) searches.

        Returns:
            The estimator.
        """
        rows, turned, codes = self._inputs(features, sources, mirrored)
        num_samples = len(rows)
        clips = None if times is None else Clips(codes, as_times(times, num_samples), self.max_step)
        self.neighbors_ = neighbors = self._listed(rows, turned, codes, neighbors)
        pairs = Links.between(neighbors).measured(rows, None, clips, self.window)
        if turned is not None:
            other = Links(pairs.first, pairs.second, ~pairs.flip).measured(rows, turned, clips, self.window)
            better = other.value > pairs.value
            pairs = Links(*pairs[:2], better, np.maximum(pairs.value, other.value))
        self._threshold(num_samples, pairs)
        sure = pairs.value >= self.threshold_
        if self.mutual:
            sure &= pairs.among_best(num_samples, self.mutual)
        links = pairs.pick(sure)
        if clips is not None and self.path and sure.any():
            links = self._followed(rows, turned, clips, links)
        self._grow(num_samples, codes, links)
        return self

    def fit_predict(
        self,
        features: ArrayLike,
        y: Any = None,
        *,
        sources: Any = None,
        mirrored: ArrayLike | None = None,
        times: Any = None,
        neighbors: Neighbors | None = None,
    ) -> np.ndarray:
        """As `fit`, but returns `labels_`."""
        return self.fit(
            features, y, sources=sources, mirrored=mirrored, times=times, neighbors=neighbors
        ).labels_

    def _inputs(
        self, features: ArrayLike, sources: Any, mirrored: ArrayLike | None
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        self._check()
        rows = unit_rows(features)
        mirror = as_mirrored(mirrored, rows)
        turned = None if mirror is None else unit_rows(mirror, "mirrored")
        for name, table in (("features", rows), ("mirrored", turned)):
            if table is not None and not (filled := table.any(axis=1)).all():
                raise ValueError(
                    f"row {filled.argmin()} of {name} holds zeros only, so its cosine with others is not "
                    "defined: leave that sample out"
                )
        if 1 - np.square(rows.mean(0, dtype=np.float64)).sum() < 1e-6 and (rows != rows[0]).any():
            warnings.warn(
                "all features point in one direction, so that their cosines are equal but for rounding: "
                "subtract their mean first",
                stacklevel=4,
            )
        if len(rows) < 2:
            raise ValueError(f"features hold {len(rows)} sample: give at least 2, or there is no pair")
        return rows, turned, as_codes(sources, len(rows))

    def lists_nearest(self, features: np.ndarray, sources: Any) -> bool:
        """Whether `find_neighbors` lists the nearest samples of the features as they are: of unit rows."""
        return bool((np.abs(np.einsum("nd,nd->n", features, features) - 1) < 1e-4).all())

    def _check(self) -> None:
        as_flag(self.one_per_source, "one_per_source")
        as_real(self.coverage, "coverage", low=0, high=1, open_low=True)
        if self.min_similarity is not None:
            as_real(self.min_similarity, "min_similarity", low=-1, high=1)
        for name, least in {"mutual": 0, "window": 0, "path": 0, "min_size": 2, "max_neighbors": 1}.items():
            as_count(getattr(self, name), name, least)
        as_count(self.max_size, "max_size", least=self.min_size)
        for name in ("follow", "linkage"):
            as_real(getattr(self, name), name, low=0, high=1)
        if self.max_step is not None:
            as_real(self.max_step, "max_step", low=0, open_low=True)

    def _threshold(self, num_samples: int, pairs: Links) -> None:
        """Set nearest_, nearest_similarity_ and threshold_."""
        sample, other, value = pairs.both_ways()
        order = np.lexsort((other, -value, sample))
        best = order[np.unique(sample[order], return_index=True)[1]]
        self.nearest_ = np.full(num_samples, -1, np.int64)
        self.nearest_similarity_ = np.full(num_samples, -np.inf, np.float32)
        self.nearest_[sample[best]] = other[best]
        self.nearest_similarity_[sample[best]] = value[best]
        if self.min_similarity is not None:
            self.threshold_ = float(self.min_similarity)
            return
        falling = -np.sort(-value[best])
        wanted = int(np.ceil(self.coverage * num_samples - 1e-9))
        self.threshold_ = float(falling[min(wanted, len(falling)) - 1]) if len(falling) else np.inf

    def _followed(self, rows: np.ndarray, turned: np.ndarray | None, clips: Clips, links: Links) -> Links:
        """The links and those on their paths, each pair once, at its best."""
        least = self.threshold_ - (1 - self.follow) * abs(self.threshold_)
        found = [links]
        for sign in (1, -1):
            near = links
            for _ in range(self.path):
                near = near.pick(clips.has(near.first, sign) & clips.has(near.second, sign))
                near = Links(clips.shift(near.first, sign), clips.shift(near.second, sign), near.flip)
                near = near.measured(rows, turned, clips, self.window)
                near = near.pick(near.value >= least)
                found.append(near)
        first, second, flip, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
        lower, upper = np.minimum(first, second), np.maximum(first, second)
        order = np.lexsort((flip, -value, upper, lower))
        pair = lower[order] * len(rows) + upper[order]
        return Links(lower, upper, flip, value).pick(order[np.unique(pair, return_index=True)[1]])

    def _grow(self, num_samples: int, codes: np.ndarray | None, links: Links) -> None:
        """Set the classes, from links of distinct pairs."""
        links = links.pick(np.lexsort((links.second, links.first, -links.value)))
        self.links_ = np.stack(links[:2], 1)
        self.link_similarity_, self.link_flips_ = links.value, links.flip
        partners: dict[int, dict[int, bool]] = {}
        pairs = list(zip(*(part.tolist() for part in links[:3]), strict=True))
        for i, j, turned in pairs:
            partners.setdefault(i, {})[j] = turned
            partners.setdefault(j, {})[i] = turned
        one_each = codes if self.one_per_source else None
        home = {i: i for i in partners}  # sample to its class
        members = {i: [i] for i in partners}
        side = dict.fromkeys(partners, False)  # True: the sample stands in its class mirrored
        for i, j, turned in pairs:
            a, b = home[i], home[j]
            if a == b or len(members[a]) + len(members[b]) > self.max_size:
                continue
            if len(members[a]) < len(members[b]):
                a, b = b, a
            turn = side[i] ^ side[j] ^ turned  # of the smaller class, to stand as the link says
            agree = sum(
                partners[m].get(n) == (side[m] ^ side[n] ^ turn) for m in members[b] for n in members[a]
            )
            if agree < self.linkage * len(members[a]) * len(members[b]):
                continue
            if one_each is not None and {one_each[m] for m in members[a]} & {one_each[m] for m in members[b]}:
                continue
            for m in members[b]:
                home[m], side[m] = a, side[m] ^ turn
            members[a] += members.pop(b)
        kept = sorted(sorted(group) for group in members.values() if len(group) >= self.min_size)
        self.num_classes_ = len(kept)
        self.labels_ = np.full(num_samples, -1, np.int64)
        self.flips_ = np.zeros(num_samples, bool)
        for label, group in enumerate(kept):
            flips = np.array([side[m] for m in group])
            self.labels_[group] = label
            self.flips_[group] = flips ^ (2 * flips.sum() > len(group))
