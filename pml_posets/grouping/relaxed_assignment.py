"""The y-step: relaxed assignments of samples to classes that raise their compactness G (Eq. 5 and 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from torch import Tensor

from .._classes import ClassMembers, check_neighbors, oriented, relabel
from .._nearest_classes import class_medoids
from .._validation import (
    ArrayLike,
    as_codes,
    as_count,
    as_features,
    as_flips,
    as_labels,
    as_mirrored,
    as_real,
    checked,
)
from ..neighbors.nearest import Backend, Neighbors, search
from ._groups import Space
from ._relaxation import Assigned, Candidates, Moves, Pool, Problem, accept, gain_of_joining, gain_of_leaving

__all__ = ["RelaxedAssignment", "compactness"]

_TOLERANCES = (0.1, 0.5)  # what an estimated tolerance may be
_LEAST = 1e-20  # affinity that a candidate keeps, to be able to come back
_CERTAINTY = 0.7  # affinity of a sample to where it stands, at the start


@dataclass(eq=False, repr=False)
class RelaxedAssignment(ClusterMixin, BaseEstimator):
    """Move samples between classes, in and out of them, so that the classes become more compact.

    Each sample i has affinities y_ic >= 0, a softmax over its few candidate classes and over staying
    unassigned (sum 1). They ascend the relaxed G of Eq. 7 by SGD: a step takes a random batch of classes and
    moves the affinities of the samples that have one of them as a candidate along

        s_ic - (1 - tolerance) S_c,
        s_ic = sum_j y_jc s_ij / sum_j y_jc  (j != i),   S_c = sum_i y_ic s_ic / sum_i y_ic,

    which is G's gradient (2 / m_c) (s_ic - S_c), m_c = sum_i y_ic, with two changes: it is scaled by the
    size of the class, so that large classes learn as fast as small ones, and holding a sample is worth
    tolerance x S_c. Without the latter every class would shed its below-average members down to min_size
    (the trivial solution). Each sample then takes its largest affinity. Moves that would leave a class below
    min_size are taken back, and of the rest, by their gain in G, the most that G allows are made, so that G
    never falls. All this is repeated with new candidates until nothing moves, num_rounds times at most.

    Args:
        min_size: t, members of a class at least, from 1. Default 3. (The paper's bound is strict: > t.)
        num_candidates: classes that a sample may join, by the distance to their medoids, its own included.
            Default 4.
        num_steps: passes over all classes in a round. Default 20.
        lr: step size, relative to the mean similarity inside classes at the start. Default 2.0.
        tolerance: in 0..1, see above: a sample less similar to a class than 1 - tolerance times the class's
            own mean is better left out. None (default): three times the median absolute deviation of s_ic /
            S_c over the members at the start of a round, within 0.1..0.5. 0 is Eq. 7 as printed.
        batch_classes: classes a step. Default 1024.
        num_rounds: Default 3.
        max_references: samples of a class's candidates that similarities to it are estimated on, if it has
            more, drawn at random. Memory is at most N x num_candidates x max_references floats. Default 128.
        scale: of the similarity, above 0. Default and paper: 1.0.
        backend: of the candidate search, as for `search`. Default "auto".
        device: where all but the final check is computed. Default "cpu".
        random_state: seed, from 0. Default 0. The same seed and input give the same labels.

    Attributes:
        labels_: (N,) int64, -1 for unassigned, else 0..num_classes_ - 1; the classes keep the order of the
            start's.
        flips_: (N,) bool, True where a sample stands in its class mirrored.
        num_classes_: C; classes of the start with fewer than min_size members are dissolved before anything
            else.
        objective_: list of float, the exact G of the start (without those) and after each round; never falls.
        tolerance_: the tolerance of the last round.
        num_moved_: how many samples have another label than at the start (dissolved ones count).

    Raises:
        TypeError, ValueError: by `fit`, for an option out of its range or arrays that do not match.

    Source: section 3.4 of the paper, Eq. 5, 7.
    Differs from the paper: it gives no more than "relaxed one-hot" and "SGD"; all the rest, and the rule
        about sources, are this package's.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> truth = np.repeat(np.arange(5), 8)
        >>> features = rng.normal(size=(5, 4))[truth] + 0.05 * rng.normal(size=(40, 4))
        >>> start = truth.copy()
        >>> start[[0, 9, 18]] = [1, 2, 0]
        >>> bool((RelaxedAssignment().fit_predict(features, start) == truth).all())
        True
    """

    min_size: int = 3
    num_candidates: int = 4
    num_steps: int = 20
    lr: float = 2.0
    tolerance: float | None = None
    batch_classes: int = 1024
    num_rounds: int = 3
    max_references: int = 128
    scale: float = 1.0
    backend: Backend = "auto"
    device: str | torch.device = "cpu"
    random_state: int = 0

    def fit(
        self,
        features: ArrayLike,
        labels: Any,
        mirrored: ArrayLike | None = None,
        flips: Any = None,
        sources: Any = None,
        neighbors: Neighbors | None = None,
    ) -> RelaxedAssignment:
        """Assign; see the class.

        Args:
            features: (N, D) float32 array or tensor, in dataset order.
            labels: (N,) integers to start from, -1 unassigned, else 0..C-1.
            mirrored: (N, D) float32, features of the mirrored images; None (default): no mirroring. A sample
                joins a class in the orientation that is nearer to its medoid.
            flips: (N,) bool, how samples stand in their classes at the start; None (default): unflipped.
            sources: (N,) ints or strings; None (default): no rule. With them, samples of one source tell
                nothing about each other, and none joins a class that had a sample of its source.
            neighbors: what `search(features, k, mirrored=...)` found: candidates are then the classes of a
                sample's neighbors, which spares the search for medoids. None (default) searches.

        Returns:
            The estimator.
        """
        self._check()
        table = as_features(features)
        num_samples = len(table)
        mirror = as_mirrored(mirrored, table)
        start = as_labels(labels, num_samples)
        turned = as_flips(flips, num_samples, mirror) & (start >= 0)
        codes = as_codes(sources, num_samples)
        if neighbors is not None:
            check_neighbors(neighbors, num_samples, mirror is not None)
        self.n_features_in_ = table.shape[1]
        sizes = np.bincount(start[start >= 0], minlength=1)
        current = relabel(np.where((start >= 0) & (sizes[start] >= self.min_size), start, -1))
        turned &= current >= 0
        rng = np.random.default_rng(self.random_state)
        problem = Problem(table, mirror, codes, Space.of(table, mirror, self.scale, self.device))
        now = Assigned(current, turned, problem.terms(current, turned))
        self.objective_ = [float(now.terms.sum())]
        self.num_classes_ = int(current.max()) + 1
        self.tolerance_ = 0.0 if self.tolerance is None else float(self.tolerance)
        no_autocast = torch.autocast(problem.space.table.device.type, enabled=False)
        with torch.no_grad(), no_autocast, checked(table, mirror):
            for _ in range(self.num_rounds if self.num_classes_ else 0):
                candidates = self._candidates(problem, now.labels, now.flips, neighbors)
                moves = self._relax(problem, candidates, now.labels, rng)
                accepted = accept(problem, moves, now, self.min_size)
                if accepted is None:
                    break
                now = accepted
                self.objective_.append(float(now.terms.sum()))
        self.labels_, self.flips_ = now.labels, now.flips
        self.num_moved_ = int((now.labels != start).sum())
        return self

    def fit_predict(
        self,
        features: ArrayLike,
        labels: Any,
        mirrored: ArrayLike | None = None,
        flips: Any = None,
        sources: Any = None,
        neighbors: Neighbors | None = None,
    ) -> np.ndarray:
        """As `fit`, but returns `labels_`."""
        return self.fit(features, labels, mirrored, flips, sources, neighbors).labels_

    def _check(self) -> None:
        for name in (
            "min_size",
            "num_candidates",
            "num_steps",
            "batch_classes",
            "num_rounds",
            "max_references",
        ):
            as_count(getattr(self, name), name)
        as_count(self.random_state, "random_state", least=0)
        as_real(self.scale, "scale", low=0, open_low=True)
        as_real(self.lr, "lr", low=0, open_low=True)
        if self.tolerance is not None:
            as_real(self.tolerance, "tolerance", low=0, high=1)

    def _candidates(
        self, problem: Problem, labels: np.ndarray, flips: np.ndarray, neighbors: Neighbors | None
    ) -> Candidates:
        """The classes each sample may be in: its own first, then the nearest others."""
        num_samples = labels.size
        width = min(self.num_candidates, self.num_classes_)
        if neighbors is None:
            table, mirror = problem.features, problem.mirrored
            medoids = class_medoids(table, mirror, flips, ClassMembers.of(labels))
            medoids = oriented(table, mirror, flips, medoids)  # (C, D)
            how: dict[str, Any] = {"backend": self.backend, "device": self.device}
            found = search(medoids, width, query_features=table, mirrored=mirror, **how)
            classes = found.indices
            turned = np.zeros(classes.shape, bool) if found.flips is None else found.flips
        else:
            index = np.maximum(neighbors.indices, 0)
            classes = np.where(neighbors.indices >= 0, labels[index], -1)
            turned = flips[index] if neighbors.flips is None else flips[index] ^ neighbors.flips
        classes = np.concatenate([labels[:, None], classes], axis=1)  # own class, then by distance
        turned = np.concatenate([flips[:, None], turned], axis=1)
        # Of each row the first entry of each class stays, and of these the first `width`.
        row, column = np.nonzero(classes >= 0)
        key = row * self.num_classes_ + classes[row, column]
        first = np.sort(np.unique(key, return_index=True)[1])
        row, column = row[first], column[first]
        slot = np.arange(row.size) - np.searchsorted(row, np.arange(num_samples))[row]
        short = slot < width
        row, column, slot = row[short], column[short], slot[short]
        result = Candidates(np.full((num_samples, width), -1), np.zeros((num_samples, width), bool))
        result.classes[row, slot], result.flips[row, slot] = classes[row, column], turned[row, column]
        return result

    def _relax(
        self, problem: Problem, candidates: Candidates, labels: np.ndarray, rng: np.random.Generator
    ) -> Moves:
        """Ascend the relaxed G from the labels and round to the largest affinity: what then moves."""
        num_samples, width = candidates.classes.shape
        place = problem.space.table.device
        pools = list(problem.pools(candidates, self.max_references, rng))
        hard = torch.zeros((num_samples, width + 1), device=place)
        # A sample's own class is its first candidate, staying unassigned is the last.
        current = torch.from_numpy(np.where(labels >= 0, 0, width)).to(place)
        hard[torch.arange(num_samples, device=place), current] = 1
        similarity = torch.zeros(hard.shape, dtype=torch.float64, device=place)
        means = torch.zeros(self.num_classes_, dtype=torch.float64, device=place)
        for pool in pools:
            value, mean = pool.gradient(hard)
            similarity.view(-1)[pool.entries[pool.filled]] = value[pool.filled].double()
            means[pool.classes] = mean.double()
        self.tolerance_ = self._tolerance(similarity[:, 0], means, labels)
        allowed = torch.from_numpy(np.pad(candidates.classes >= 0, ((0, 0), (0, 1)))).to(place)
        allowed[:, width] = True
        unit = float(means.mean().clamp_min(torch.finfo(torch.float64).tiny))
        best = self._ascend(pools, hard, allowed, unit, rng)
        moved = torch.nonzero(best != current)[:, 0]
        who, slot = moved.cpu().numpy(), best[moved].cpu().numpy()
        to = np.pad(candidates.classes, ((0, 0), (0, 1)), constant_values=-1)[who, slot]
        sizes = np.bincount(labels[labels >= 0], minlength=self.num_classes_)
        near, average = similarity[moved].cpu().numpy(), means.cpu().numpy()
        gain = gain_of_leaving(near[:, 0], labels[who], average, sizes)
        gain += gain_of_joining(near[np.arange(who.size), slot], to, average, sizes)
        order = np.lexsort((who, -gain))
        flips = np.pad(candidates.flips, ((0, 0), (0, 1)))[who, slot]
        return Moves(who[order], to[order], flips[order])

    def _ascend(
        self, pools: list[Pool], hard: Tensor, allowed: Tensor, unit: float, rng: np.random.Generator
    ) -> Tensor:
        """(N,) candidate of the largest affinity after all steps from `hard`; of equal ones the current."""
        others = allowed.sum(1, keepdim=True) - 1
        affinity = torch.where(hard > 0, _CERTAINTY, (1 - _CERTAINTY) / others).masked_fill_(~allowed, 0)
        affinity /= affinity.sum(1, keepdim=True)
        gradient = torch.zeros_like(affinity)
        rate = self.lr / (hard.shape[1] - 1)  # a sample moves once for each of its candidate classes
        whole = [(pool, *pool.touched(affinity)) for pool in pools]
        for _ in range(self.num_steps):
            steps = []
            for step in whole:
                order, size = rng.permutation(len(step[0].classes)), self.batch_classes
                steps += [(*step, order[first : first + size]) for first in range(0, order.size, size)]
            for number in rng.permutation(len(steps)):
                pool, entries, who, rows = steps[number]
                if rows.size < len(pool.classes):
                    pool = pool.pick(torch.from_numpy(rows).to(hard.device))
                    entries, who = pool.touched(affinity)
                value, mean = pool.gradient(affinity)
                ascent = (value - (1 - self.tolerance_) * mean[:, None]) / unit
                gradient.view(-1)[entries] = ascent[pool.filled]
                # The softmax of logits + rate * gradient, without keeping the logits.
                growth = gradient[who].mul_(rate)
                growth = growth.sub_(growth.amax(1, keepdim=True)).exp_()
                raised = growth.mul_(affinity[who]).clamp_min_(_LEAST).mul_(allowed[who])
                affinity[who] = raised / raised.sum(1, keepdim=True)
        current, best = hard.argmax(1, keepdim=True), affinity.argmax(1, keepdim=True)
        stays = affinity.gather(1, current) >= affinity.gather(1, best)
        return torch.where(stays, current, best)[:, 0]

    def _tolerance(self, similarity: Tensor, means: Tensor, labels: np.ndarray) -> float:
        """The one given, or three times the median absolute deviation of s_ic / S_c over the members."""
        if self.tolerance is not None:
            return float(self.tolerance)
        assigned = torch.from_numpy(np.flatnonzero(labels >= 0)).to(means.device)
        mean = means[torch.from_numpy(labels[labels >= 0]).to(means.device)]
        ratio = similarity[assigned] / mean.clamp_min(torch.finfo(torch.float64).tiny)
        spread = float((ratio - ratio.median()).abs().median())
        return float(np.clip(3 * spread, *_TOLERANCES))


def compactness(
    features: ArrayLike,
    labels: Any,
    scale: float = 1.0,
    *,
    mirrored: ArrayLike | None = None,
    flips: Any = None,
) -> float:
    """G of Eq. 7: the sum over classes of the mean similarity of their pairs, a sample with itself too.

    G = sum_c sum_{i in c} sum_{j in c} exp(-||x_i - x_j|| / scale) / |c|^2; each class counts for 1 at most.

    Args:
        features: (N, D) float32, in dataset order.
        labels: (N,) integers, -1 unassigned (left out), else 0..C-1.
        scale: of the similarity, above 0. Default and paper: 1.0.
        mirrored: (N, D) float32, features of the mirrored images; None (default) without.
        flips: (N,) bool, True where a sample stands in its class mirrored; None (default): nowhere.

    Returns:
        G, in 0..C; 0 without classes.

    Raises:
        TypeError, ValueError: for arrays that are wrong or do not match, or a scale that is not above 0.

    Source: Eq. 7 of the paper.

    Example:
        >>> compactness([[0.0], [0.0], [7.0], [8.0]], [0, 0, -1, 1])
        2.0
    """
    features = as_features(features)
    mirrored = as_mirrored(mirrored, features)
    labels = as_labels(labels, len(features))
    as_real(scale, "scale", low=0, open_low=True)
    problem = Problem(features, mirrored, None, Space.of(features, mirrored, scale))
    return float(problem.terms(labels, as_flips(flips, len(features), mirrored)).sum())
