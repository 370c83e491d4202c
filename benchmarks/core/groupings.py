"""What the methods group by: each grouping an entry of a table, a function that draws its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import BatchSampler

from benchmarks.core.methods import Method
from benchmarks.core.networks import feature_dim
from benchmarks.core.recipes import Recipe
from pml_posets._random import derive_seeds
from pml_posets.grouping.confident import ConfidentGrouping
from pml_posets.grouping.kmeans import KMeansGrouping
from pml_posets.grouping.relaxed_assignment import RelaxedAssignment
from pml_posets.grouping.surrogate import SurrogateGrouping
from pml_posets.posets import Posets
from pml_posets.samplers.neighbor_batches import NeighborBatches
from pml_posets.samplers.pseudo_label import GivenLabels, PseudoLabelProvider, PseudoLabelSampler
from pml_posets.training.joint import JointTrainer, keep_groups

FeatureFn = Callable[[JointTrainer], Any]


@dataclass
class Start:
    """What training starts from.

    Args:
        features: (N, D) float32, unit rows: the first similarities (HOG-LDA).
        mirrored: (N, D) float32, those of the mirrored images; None: mirror images are not looked at.
        sources: (N,) source of each sample, its video; None: each its own.
        times: (N,) when each sample was taken in its source; None: not known.
        labels: (N,) true classes from 0, -1: in none, which the method supervised alone looks at; None: not
            known.
        num_clusters: K of k-means where the recipe leaves it open. Default 100, published for CUB and Cars.
        flippable: the mirror image of a sample is of the same true class; else it is of none.
        targets: what the feature loss predicts, (N, D) rows of the images, and of the mirrored ones. Default:
            the features.
    """

    features: np.ndarray
    mirrored: np.ndarray | None = None
    sources: np.ndarray | None = None
    times: np.ndarray | None = None
    labels: np.ndarray | None = None
    num_clusters: int = 100
    flippable: bool = True
    targets: tuple[np.ndarray, ...] = ()

    def with_mirror_images(self) -> Start:
        """The same with every mirror image as a sample of its own, behind the others."""
        mirrored = [] if self.mirrored is None else [self.mirrored]
        targets = self.targets[: 1 + len(mirrored)]
        sources = np.arange(len(self.features)) if self.sources is None else self.sources

        def twice(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else np.tile(values, 1 + len(mirrored))

        labels = twice(self.labels)
        if labels is not None and not self.flippable:
            labels[len(self.features) :] = -1
        return replace(
            self,
            features=np.concatenate([self.features, *mirrored]),
            mirrored=None,
            targets=(np.concatenate(targets),) if targets else (),
            sources=twice(sources),
            times=twice_far(self.times) if mirrored else self.times,
            labels=labels,
        )

    def unmirrored(self) -> Start:
        """The same without mirror images: clusters and neighbors are of the samples as they are."""
        return replace(self, mirrored=None)


def twice_far(times: np.ndarray | None) -> np.ndarray | None:
    """Times of samples and of their mirror images: the mirror images of a clip are a clip far from it."""
    return None if times is None else np.concatenate([times, times + 10 * (np.ptp(times) + 1)])


@dataclass
class Plan:
    """What a method is made of.

    Args:
        start: the first similarities.
        recipe: every choice.
        models: {"trunk": augmentation and network, "embedder"}, on their device.
        seed: of the groups and batches.
    """

    start: Start
    recipe: Recipe
    models: Mapping[str, nn.Module]
    seed: int

    @property
    def num_clusters(self) -> int:
        """K of k-means, and prototypes of concurl."""
        return self.recipe.num_clusters or self.start.num_clusters

    @property
    def dim(self) -> int:
        """Width of the trunk's output."""
        return feature_dim(self.models)


def surrogate_classes(plan: Plan, method: Method) -> tuple[PseudoLabelSampler, FeatureFn | None]:
    """Compact groups of look-alikes (section 3.1) or sure ones, refined by Eq. 5 where the recipe says so."""
    recipe = plan.recipe
    grouping: PseudoLabelProvider = SurrogateGrouping(
        num_classes=recipe.num_classes,
        min_size=recipe.min_size,
        max_size=recipe.max_size,
        mean_size=recipe.mean_size,
        top_fraction=recipe.top_fraction,
        max_neighbors=32,
        contrast=np.inf,  # the paper's rule, which the rows of RESULTS.md were made with
        random_state=plan.seed,
    )
    if recipe.groups == "sure":
        grouping = ConfidentGrouping(
            recipe.coverage, mutual=recipe.mutual, min_size=2, max_size=recipe.max_size
        )
    assignment = RelaxedAssignment(min_size=recipe.min_size, random_state=plan.seed)
    return pseudo_label_batches(
        plan,
        method,
        grouping,
        assignment=assignment if recipe.refine else None,
        warm_start=recipe.refine,
        mirrored=plan.start.mirrored,
    ), feature_fn(plan.start, recipe)


def kmeans_clusters(plan: Plan, method: Method) -> tuple[PseudoLabelSampler, FeatureFn | None]:
    """The same number of samples of each cluster of k-means; nothing is unassigned."""
    grouping = KMeansGrouping(plan.num_clusters, random_state=plan.seed)
    sampler = pseudo_label_batches(plan, method, grouping, samples_per_class=plan.recipe.samples_per_cluster)
    return sampler, feature_fn(plan.start.unmirrored(), plan.recipe)


def true_classes(plan: Plan, method: Method) -> tuple[PseudoLabelSampler, FeatureFn]:
    """The same number of samples of each true class."""
    labels = plan.start.labels
    if labels is None:
        raise ValueError("supervised needs the true classes of the images to learn from: they are not known")
    given = GivenLabels(labels)
    sampler = pseudo_label_batches(plan, method, given, samples_per_class=plan.recipe.samples_per_cluster)
    return sampler, keep_groups


def no_groups(plan: Plan, method: Method) -> tuple[TwoViews, FeatureFn]:
    """Two views of each of half as many random images."""
    size = len(plan.start.features)
    return TwoViews(size, plan.recipe.batch_size, plan.recipe.iterations, plan.seed), keep_groups


def nearest_neighbors(plan: Plan, method: Method) -> tuple[NeighborBatches, FeatureFn | None]:
    """Whole queries with their nearest, in two views: of 128 images with 5 nearest 120 are left."""
    recipe = plan.recipe
    size = recipe.batch_size - recipe.batch_size % (2 * recipe.samples_per_cluster)
    sampler = NeighborBatches(
        plan.start.features,
        size,
        samples_per_query=recipe.samples_per_cluster,
        views=2,
        num_batches=recipe.iterations,
        seed=plan.seed,
    )
    return sampler, feature_fn(plan.start.unmirrored(), recipe)


def pseudo_label_batches(plan: Plan, method: Method, grouping: Any, **more: Any) -> PseudoLabelSampler:
    """Batches of the classes of a grouping: any estimator with `fit_predict(features, sources=...)`."""
    recipe = plan.recipe
    return PseudoLabelSampler(
        plan.start.features,
        recipe.batch_size,
        num_nearest=recipe.num_nearest,
        unassigned_fraction=recipe.unassigned_fraction if method.unassigned else 0.0,
        random_fraction=recipe.random_fraction if method.unassigned else 0.0,
        views=method.views,
        grouping=grouping,
        sources=plan.start.sources,
        times=plan.start.times,
        num_batches=recipe.iterations,
        seed=plan.seed,
        **more,
    )


GROUPINGS: dict[str, Callable[[Plan, Method], tuple[Any, FeatureFn | None]]] = {
    "surrogate": surrogate_classes,
    "kmeans": kmeans_clusters,
    "labels": true_classes,
    "neighbors": nearest_neighbors,
    "none": no_groups,
}
"""Name to function."""


class TwoViews(BatchSampler):
    """Batches of random samples, each listed twice; batch b is a function of (seed, epoch, b) alone.

    Args:
        num_samples: N.
        batch_size: of the listed indices, even: half as many samples.
        num_batches: in an epoch.
        seed: of the draw, from 0.

    Attributes:
        epoch: number of the next pass, from 0.
    """

    def __init__(self, num_samples: int, batch_size: int, num_batches: int, seed: int) -> None:
        if batch_size < 2 or batch_size % 2:
            raise ValueError(f"batch_size must be even for two views of each sample, got {batch_size}")
        if batch_size // 2 > num_samples:
            raise ValueError(
                f"a batch of two views holds {batch_size // 2} samples, but there are only {num_samples}: "
                "lower batch_size"
            )
        self.num_samples, self.batch_size = num_samples, batch_size
        self.num_batches, self.seed = num_batches, seed
        self.drop_last, self.epoch = True, 0
        every = np.zeros(num_samples, np.int64)
        self._posets = Posets(
            labels=every,
            medoids=every[:1],
            nearest_classes=every[:, None],
            nearest_distances=np.zeros((num_samples, 1), np.float32),
            flips=np.zeros(num_samples, bool),
        )

    @property
    def posets(self) -> Posets:
        """One class that holds every sample, as `JointTrainer` asks for some."""
        return self._posets

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for number in range(self.num_batches):
            rng = np.random.default_rng(derive_seeds(self.seed, epoch, number))
            yield rng.choice(self.num_samples, self.batch_size // 2, replace=False).tolist() * 2

    def regroup(self, features: Any, mirrored: Any = None) -> Posets:
        """There is nothing to group."""
        return self.posets

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """The next epoch."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the next epoch back."""
        self.epoch = state["epoch"]


def feature_fn(start: Start, recipe: Recipe) -> FeatureFn | None:
    """What groups are made of from the second round on."""
    if recipe.regroup == "fixed":
        return keep_groups
    if recipe.regroup == "network":
        return None
    return lambda joint: mixed(joint.extract(), start, recipe.mix)


def mixed(network: Any, start: Start, share: float) -> Any:
    """Stacked unit features: their squared distances, and so their cosines, add up with the shares."""
    mine, first = share**0.5, (1 - share) ** 0.5
    if start.mirrored is None:
        return np.hstack([mine * network, first * start.features])
    pairs = zip(network, (start.features, start.mirrored), strict=True)
    return tuple(np.hstack([mine * one, first * other]) for one, other in pairs)
