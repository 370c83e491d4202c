"""The sampler that makes surrogate classes and serves batches of them and of unassigned samples."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import BatchSampler

from .._classes import relabel
from .._random import derive_seeds, seeded
from .._sketch import sketch
from .._validation import (
    ArrayLike,
    as_count,
    as_features,
    as_flag,
    as_labels,
    as_mirrored,
    as_real,
    check_shape,
    checked,
)
from ..neighbors.nearest import Neighbors
from ..posets import Posets
from ._batches import PosetBatches

__all__ = ["GivenLabels", "PseudoLabelProvider", "PseudoLabelSampler"]


class PseudoLabelProvider(Protocol):
    """Anything that groups features: `SurrogateGrouping`, a scikit-learn clusterer, your own.

    `fit_predict` may also take the keywords `sources` (N,), `times` (N,), `mirrored` (N, D) and `labels`
    (N,), those of the round before for a warm start; it is given those that its signature names. If the
    provider then has an attribute `flips_`, (N,) bool, these are the samples that are in their class
    mirrored. If it has a method `find_neighbors(features, *, sources, mirrored)`, its answer is computed once
    a round and shared with the assignment and the posets, as the keyword `neighbors`; with the grouping
    alone, if its `lists_nearest(features, sources)` says that medoids cannot be looked up in it.
    """

    def fit_predict(self, features: np.ndarray) -> Any:
        """(N, D) float32 to (N,) integer labels, -1 for unassigned."""


class GivenLabels:
    """A provider that returns labels you have: true ones as a ceiling, or groups made elsewhere.

    Args:
        labels: (N,) integers from -1.

    Example:
        >>> GivenLabels([5, -1, 5]).fit_predict(np.zeros((3, 2), np.float32))
        array([ 0, -1,  0])
    """

    def __init__(self, labels: Any) -> None:
        self.labels = relabel(labels)

    def fit_predict(self, features: np.ndarray) -> np.ndarray:
        """The labels, if there is one for each of the N samples."""
        return as_labels(self.labels, len(features))


class PseudoLabelSampler(BatchSampler):
    """Groups features into surrogate classes and draws batches of unassigned samples and classes.

    A few unassigned samples are drawn at random, and the classes whose posets hold them (their Z nearest)
    become the batch's home classes: the medoid and random other members, `samples_per_class` together. More
    unassigned samples from the posets of the home classes are added, first those whose Z nearest classes
    are all home classes. Of a nearest class that is none, only the medoid is added. What always holds:

    - every batch has exactly `batch_size` indices;
    - with an unassigned sample come the medoids of all its Z nearest classes;
    - with any member of a class comes its medoid;
    - unassigned samples and the medoids that they alone require take at most `unassigned_fraction` of
      the batch. The rest of the batch is filled by further classes, then by further members;
    - a sample is in a batch twice only if the classes have too few members in all to fill it. They are
      then repeated evenly (augmentation tells them apart). Unassigned samples never are.

    With `views` above 1 all this holds of the batch_size / views samples that are drawn; these then stand in
    the batch one view after another. Without unassigned samples the home classes are drawn at random. Classes
    in no poset are drawn as often as their number demands. Without any class a batch is a random set.

    Batches are drawn independently: in an epoch some samples come more often than others, over many epochs
    unassigned samples come equally often. Batch b is a function of (seed, round, epoch, b) alone; each pass
    over the sampler is the next epoch.

    Args:
        features: (N, D) float32, in dataset order, for the first grouping. It is made when labels, posets or
            batches are first asked for.
        batch_size: B, at most N. Default 128.
        num_nearest: Z, how many nearest classes an unassigned sample has. Default 2; the paper has Z >= 2.
        samples_per_class: members of a home class in a batch, its medoid included. Default 4.
        views: how often each drawn sample is in a batch, augmented differently each time. Default 1.
        unassigned_fraction: largest part of a batch for unassigned samples, 0..1. Default 0.5; 0: none.
        random_fraction: part of a batch that is drawn from all samples alike, 0..1. Default 0. A batch of
            few posets shows little of the data; losses of single samples, and batch norm, gain from random
            samples.
        grouping: a `PseudoLabelProvider`. Default: `SurrogateGrouping()`.
        assignment: refines the labels (`RelaxedAssignment`, Eq. 5). Default None: the grouping's labels stay.
        warm_start: with an assignment, from the second round on, True (default, the paper's): it starts from
            the labels of the round before, and the grouping is not called again; False: it is.
        sources: (N,) source of each sample, which the grouping and the posets respect. Default None.
        mirrored: (N, D) float32, features of the mirrored images. Default None.
        times: (N,) numbers, time of each sample within its source, passed on to a grouping that takes it
            (`ConfidentGrouping`). Default None.
        num_batches: batches in an epoch. Default: N // batch_size.
        seed: from 0. Default 0.

    Attributes:
        epoch: number of the next pass, from 0.
        fingerprint: a number for each row of the features given, by which a checkpoint knows them.

    Raises:
        TypeError, ValueError: for arguments out of range or that do not match each other.

    Source: section 3.3 of the paper.
    Differs from the paper: it does not say how a batch is filled. Only the first few unassigned samples are
    drawn uniformly, the others from the posets of the same classes, which are then there to be ordered.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
        >>> groups = GivenLabels([0, 1, 2, -1, -1] * 12)
        >>> sampler = PseudoLabelSampler(features, batch_size=16, grouping=groups)
        >>> batch = next(iter(sampler))
        >>> len(sampler), len(batch), sampler.posets.num_classes
        (3, 16, 3)
    """

    def __init__(
        self,
        features: ArrayLike,
        batch_size: int = 128,
        *,
        num_nearest: int = 2,
        samples_per_class: int = 4,
        unassigned_fraction: float = 0.5,
        random_fraction: float = 0.0,
        views: int = 1,
        grouping: PseudoLabelProvider | None = None,
        assignment: Any = None,
        warm_start: bool = True,
        sources: Any = None,
        mirrored: ArrayLike | None = None,
        times: Any = None,
        num_batches: int | None = None,
        seed: int = 0,
    ) -> None:
        features = as_features(features)
        self.num_samples = len(features)
        self.batch_size = as_count(batch_size, "batch_size")
        self.drop_last = True  # batches are exact; part of what a BatchSampler has
        self.num_nearest = as_count(num_nearest, "num_nearest")
        self.samples_per_class = as_count(samples_per_class, "samples_per_class")
        self.unassigned_fraction = as_real(unassigned_fraction, "unassigned_fraction", low=0, high=1)
        self.random_fraction = as_real(random_fraction, "random_fraction", low=0, high=1)
        self.views = as_count(views, "views")
        if grouping is None:
            from ..grouping.surrogate import SurrogateGrouping

            grouping = SurrogateGrouping()
        self.grouping = grouping
        self.assignment = assignment
        self.warm_start = as_flag(warm_start, "warm_start")
        self.sources = None if sources is None else np.asarray(sources)
        self.times = None if times is None else np.asarray(times)
        self.seed = as_count(seed, "seed", least=0)
        self.epoch = 0
        self.uses_mirrored = mirrored is not None
        if self.batch_size > self.num_samples * self.views:
            found = f"batch_size={self.batch_size} for {self.num_samples} samples"
            raise ValueError(f"a batch must not be larger than the dataset, got {found}: lower batch_size")
        if self.batch_size % self.views:
            raise ValueError(f"batch_size must be a multiple of views={views}, got {batch_size}")
        for name, values in (("sources", self.sources), ("times", self.times)):
            if values is not None:
                check_shape(values, name, (self.num_samples,), " to match the features")
        _check_provider("grouping", self.grouping)
        if assignment is not None:
            _check_provider("assignment", assignment)
        default = max(1, self.num_samples // self.batch_size)
        self.num_batches = default if num_batches is None else as_count(num_batches, "num_batches")
        self._waiting: Any = (features, as_mirrored(mirrored, features))
        given = zip(("features", "mirrored"), self._waiting, strict=True)
        self.fingerprint = {name: sketch(rows) for name, rows in given if rows is not None}
        self._posets: Posets | None = None

    @property
    def is_grouped(self) -> bool:
        """True once the first grouping has been made."""
        return self._posets is not None

    @property
    def posets(self) -> Posets:
        """Classes, medoids and nearest classes of the current round."""
        return self.regroup(*self._waiting) if self._posets is None else self._posets

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, surrogate class of each sample, -1 unassigned."""
        return self.posets.labels

    @property
    def medoids(self) -> np.ndarray:
        """(C,) int64, dataset index of the medoid of each class."""
        return self.posets.medoids

    def regroup(self, features: ArrayLike, mirrored: ArrayLike | None = None) -> Posets:
        """The y-step: new labels, medoids and posets from new features of the same samples.

        The first grouping is round 0; every call begins the next round. Passes already under way go on with
        the old groups. If anything fails, the old groups stay.

        Args:
            features: (N, D) float32, in dataset order; D may differ from the round before.
            mirrored: (N, D) float32, features of the mirrored images. Default None.

        Returns:
            The new posets, also kept as `posets`.

        Raises:
            TypeError, ValueError: for features or labels that do not match, or classes of one sample each.
        """
        features = as_features(features)
        if len(features) != self.num_samples:
            found = f"{len(features)}: were they extracted from another dataset?"
            raise ValueError(f"features must have {self.num_samples} rows, one a sample, got {found}")
        mirrored = as_mirrored(mirrored, features)
        round_ = 0 if self._posets is None else self._posets.round + 1
        seed = derive_seeds(self.seed, round_)[0]  # of providers that draw from the global generators
        with seeded(seed, accelerators=False), checked(features, mirrored):
            labels, flips, neighbors = self._group(features, mirrored)
            known: dict[str, Any] = {"mirrored": mirrored, "flips": flips, "sources": self.sources}
            known["neighbors"] = neighbors if mirrored is None else None
            posets = Posets.build(features, labels, self.num_nearest, round=round_, **known)
        if self.views == 1 and posets.num_classes == self.num_samples:
            advice = "form fewer classes (fewer clusters), or draw two views of each image (views=2)"
            each = f"each of the {self.num_samples} samples is a class of its own"
            raise ValueError(f"{each}, so nothing is alike: {advice}")
        self._posets, self._waiting = posets, None
        return posets

    def _group(
        self, features: np.ndarray, mirrored: np.ndarray | None
    ) -> tuple[np.ndarray, Any, Neighbors | None]:
        """Labels, flips, and the neighbors that medoids may be looked up in."""
        last = self._posets
        refine: Any = None if self.assignment is None else self.assignment.fit_predict
        stays = last is not None and refine is not None and self.warm_start
        options: dict[str, Any] = {"sources": self.sources, "mirrored": mirrored, "times": self.times}
        flips: Any
        find = getattr(self.grouping, "find_neighbors", None)
        if find is not None and (not stays or "neighbors" in inspect.signature(refine).parameters):
            options["neighbors"] = find(features, sources=self.sources, mirrored=mirrored)
        if last is not None and stays:
            labels, flips = last.labels, last.flips
        else:
            given = options if last is None else {**options, "labels": last.labels}
            labels = self._labels(self.grouping, "the grouping's labels", features, given)
            flips = getattr(self.grouping, "flips_", None)
        lists_nearest = getattr(self.grouping, "lists_nearest", None)
        if lists_nearest is not None and not lists_nearest(features, self.sources):
            options["neighbors"] = None  # no medoid can be looked up in them
        flips = flips if mirrored is not None else None
        if refine is not None:
            given = {**options, "labels": labels, "flips": flips}
            labels = self._labels(self.assignment, "the assignment's labels", features, given)
            flips = flips if mirrored is None else getattr(self.assignment, "flips_", flips)
        return labels, flips, options.get("neighbors")

    def _labels(self, provider: Any, what: str, features: np.ndarray, given: dict[str, Any]) -> np.ndarray:
        """What a provider makes of features and those options that are given and that its signature names."""
        named = inspect.signature(provider.fit_predict).parameters
        options = {key: value for key, value in given.items() if value is not None and key in named}
        found = provider.fit_predict(features, **options)
        return relabel(as_labels(found, self.num_samples, what, contiguous=False))

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        posets, epoch = self.posets, self.epoch
        size = self.batch_size // self.views
        batches = PosetBatches(
            posets, size, self.samples_per_class, self.unassigned_fraction, self.random_fraction
        )
        self.epoch += 1
        for b in range(self.num_batches):
            drawn = batches.draw(np.random.default_rng([self.seed, posets.round, epoch, b]))
            yield drawn.tolist() * self.views

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch, from 0."""
        self.epoch = as_count(epoch, "epoch", least=0)

    def state_dict(self) -> dict[str, Any]:
        """Posets and next epoch: all that a new sampler with the same arguments needs to go on."""
        arrays = self.posets.to_arrays()
        return {"epoch": self.epoch, "posets": {name: torch.tensor(a) for name, a in arrays.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state back; a ValueError for an incomplete one, or of another number of samples or Z."""
        try:
            epoch, arrays = state["epoch"], {name: a.numpy() for name, a in state["posets"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no state of a PseudoLabelSampler ({error})") from error
        posets = Posets.from_arrays(arrays)
        found = posets.num_samples, posets.num_nearest
        if found != (self.num_samples, self.num_nearest):
            here = f"this sampler has {self.num_samples} with {self.num_nearest}"
            there = f"{found[0]} samples with {found[1]} nearest classes"
            raise ValueError(f"the state belongs to {there}, {here}")
        self.set_epoch(epoch)
        self._posets, self._waiting = posets, None


def _check_provider(name: str, provider: Any) -> None:
    if isinstance(provider, type):
        raise TypeError(f"{name} must be an instance, got the class: write {provider.__name__}(...)")
    if not callable(getattr(provider, "fit_predict", None)):
        raise TypeError(f"{name} must have a method fit_predict, got {type(provider).__name__}")
