"""What several methods of the benchmarks are built from: samplers, groupings, losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pytorch_metric_learning.losses import MultiSimilarityLoss, NTXentLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch import nn

from benchmarks.core.recipes import Recipe
from benchmarks.core.trunks import feature_dim
from benchmarks.core.two_views import IndexLoss, TwoViews
from pml_posets.grouping.surrogate import SurrogateGrouping
from pml_posets.losses.feature import FeatureLoss
from pml_posets.losses.poset import PosetLoss
from pml_posets.losses.pseudo_label import PseudoLabelLoss, WeightedLosses
from pml_posets.methods.udml_ss import RotationHead, RotationObjective
from pml_posets.samplers.pseudo_label import PseudoLabelProvider, PseudoLabelSampler
from pml_posets.training.joint import JointTrainer, keep_groups

if TYPE_CHECKING:
    from benchmarks.core.learning import Start

FeatureFn = Callable[[JointTrainer], Any]


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


@dataclass
class Parts:
    """What a `JointTrainer` needs to train by a method.

    Args:
        sampler: its batches.
        losses: PML's under PML's names, objectives under their own.
        feature_fn: what groups are made of from round 2 on; None: the network's features.
        weights: of the losses; 1 where there is none.
        miners: PML's "tuple_miner", if any.
        networks: further networks, functions num_classes -> module.
    """

    sampler: Any
    losses: dict[str, nn.Module]
    feature_fn: FeatureFn | None
    weights: dict[str, float] = field(default_factory=dict)
    miners: dict[str, Any] = field(default_factory=dict)
    networks: dict[str, Any] = field(default_factory=dict)


def surrogate_sampler(plan: Plan, posets: bool = False) -> PseudoLabelSampler:
    """Batches of surrogate classes; with posets also of unassigned samples, and of any."""
    recipe, start = plan.recipe, plan.start
    grouping = SurrogateGrouping(
        num_classes=recipe.num_classes,
        min_size=recipe.min_size,
        max_size=recipe.max_size,
        mean_size=recipe.mean_size,
        top_fraction=recipe.top_fraction,
        random_state=plan.seed,
    )
    return PseudoLabelSampler(
        start.features,
        recipe.batch_size,
        num_nearest=recipe.num_nearest,
        unassigned_fraction=recipe.unassigned_fraction if posets else 0.0,
        random_fraction=recipe.random_fraction if posets else 0.0,
        grouping=grouping,
        assignment=_assignment(recipe, plan.seed),
        warm_start=recipe.refine,
        sources=start.sources,
        mirrored=start.mirrored,
        num_batches=recipe.iterations,
        seed=plan.seed,
    )


def cluster_sampler(plan: Plan, provider: PseudoLabelProvider, views: int = 1) -> PseudoLabelSampler:
    """Batches with as many samples of each cluster or class; nothing is unassigned."""
    recipe = plan.recipe
    return PseudoLabelSampler(
        plan.start.features,
        recipe.batch_size,
        num_nearest=recipe.num_nearest,
        samples_per_class=recipe.samples_per_cluster,
        unassigned_fraction=0.0,
        views=views,
        grouping=provider,
        sources=plan.start.sources,
        num_batches=recipe.iterations,
        seed=plan.seed,
    )


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
    plain, mirrored = network
    return np.hstack([mine * plain, first * start.features]), np.hstack(
        [mine * mirrored, first * start.mirrored]
    )


def by_classes(plan: Plan, sampler: PseudoLabelSampler, metric_loss: nn.Module) -> Parts:
    """A classifier of the surrogate classes, and a metric loss."""
    return Parts(
        sampler,
        {"metric_loss": metric_loss, "classifier_loss": nn.CrossEntropyLoss()},
        feature_fn(plan.start, plan.recipe),
        networks={"classifier": lambda num_classes: nn.Linear(plan.recipe.fc_dim, num_classes)},
    )


def poset_losses(plan: Plan) -> nn.Module:
    """The poset loss and the feature loss, weighted as the recipe says."""
    recipe = plan.recipe
    poset = PosetLoss(recipe.num_nearest, sigma=recipe.sigma, anchors=recipe.anchors)
    weights = {"poset": recipe.lam, "feature": recipe.feature}
    if not any(weights.values()):  # its weight is 0 then
        return poset
    parts: dict[str, nn.Module] = {"poset": PseudoLabelLoss(poset, unassigned="keep")}
    if recipe.feature:
        parts["feature"] = feature_loss(plan)
    return WeightedLosses(parts, {name: weights[name] for name in parts})


def feature_loss(plan: Plan) -> nn.Module:
    """To tell the first similarities of each image."""
    return FeatureLoss(plan.recipe.fc_dim, plan.start.features, plan.start.mirrored)


def instance_loss() -> nn.Module:
    """NT-Xent on two views: each image a class of its own."""
    return IndexLoss(NTXentLoss(temperature=0.1))


def multi_similarity(sampler: PseudoLabelSampler, features: FeatureFn | None) -> Parts:
    """PML's loss and miner on the classes of the sampler."""
    loss, miner = published_multi_similarity()
    return Parts(sampler, {"metric_loss": loss}, features, miners={"tuple_miner": miner})


def published_multi_similarity() -> tuple[nn.Module, nn.Module]:
    """PML's loss and miner with the values that UDML-SS published."""
    return MultiSimilarityLoss(alpha=2, beta=40, base=0.5), MultiSimilarityMiner(epsilon=0.1)


def with_rotation(parts: Parts, plan: Plan) -> Parts:
    """The parts, and the rotation loss beside them."""
    parts.losses["rotation"] = RotationObjective(RotationHead(plan.dim))
    parts.weights["rotation"] = plan.recipe.rotation
    return parts


def two_views(plan: Plan) -> TwoViews:
    """Batches of random images, each twice."""
    return TwoViews(len(plan.start.features), plan.recipe.batch_size, plan.recipe.iterations, plan.seed)


def unmirrored(start: Start) -> Start:
    """Clusters and neighbours are of the samples as they are: features of mirror images are not wanted."""
    return replace(start, mirrored=None)


def _assignment(recipe: Recipe, seed: int) -> Any:
    if not recipe.refine:
        return None
    from pml_posets.grouping.relaxed_assignment import RelaxedAssignment

    return RelaxedAssignment(min_size=recipe.min_size, random_state=seed)
