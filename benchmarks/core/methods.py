"""The methods of the benchmarks: for each a small function that says what it samples and what it minimises.

An iteration shows every method the same number of images, `batch_size`, by the same trunk, augmentation and
optimizer. What the losses of some do with them takes more passes through the trunk, which is said there:
udml-ss and posets+rotation turn 16 of the images, tac-ccl moves each once, and the teacher of stml looks at
each too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pytorch_metric_learning.losses import MultiSimilarityLoss, NTXentLoss, TripletMarginLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner, TripletMarginMiner
from torch import nn

from benchmarks.core.recipes import Recipe, flag
from benchmarks.core.trunks import feature_dim, maps_layer, maps_size
from benchmarks.core.two_views import IndexLoss, TwoViews
from pml_posets.clustering import KMeans
from pml_posets.grouping import SurrogateGrouping
from pml_posets.losses import (
    AttentionConsistencyObjective,
    ConcurlObjective,
    ConsensusLoss,
    ContrastiveClusteringLoss,
    FeatureLoss,
    MemoryBankNCE,
    PosetLoss,
    RotationHead,
    RotationObjective,
    STMLObjective,
)
from pml_posets.miners import NearestMedoidMiner
from pml_posets.neighbor_batches import NeighborBatches
from pml_posets.pseudo_labels import PseudoLabelLoss, WeightedLosses
from pml_posets.samplers import GivenLabels, PseudoLabelProvider, PseudoLabelSampler
from pml_posets.trainers import JointTrainer, keep_groups

if TYPE_CHECKING:
    from benchmarks.core.learning import Start

FeatureFn = Callable[[JointTrainer], Any]
CLUSTERED = ("kmeans", "udml-ss", "tac-ccl", "kmeans+poset-loss", "kmeans+ntxent")
"""Methods whose pseudo-labels are those of k-means."""
TWO_VIEWS = ("ntxent", "concurl", "kmeans+ntxent", "ntxent+feature")
"""Methods that see two views of each image of a batch."""
OF_ONE_PROCESS = ("udml-ss", "tac-ccl", "concurl", "stml", "posets+rotation")
"""Methods with an objective, which runs the networks itself: several processes cannot share it."""


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


# --- The published methods


def posets(plan: Plan) -> Parts:
    """Surrogate classes and the posets about them (Eq. 2), with a feature loss."""
    recipe = plan.recipe
    parts = _by_classes(plan, surrogate_sampler(plan, posets=True), _poset_losses(plan))
    # The representatives are those of the round, R in Eq. 6.
    parts.miners["tuple_miner"] = NearestMedoidMiner(recipe.num_nearest, anchors=recipe.anchors)
    parts.weights["classifier_loss"] = recipe.classification
    parts.weights["metric_loss"] = 1.0 if recipe.lam or recipe.feature else 0.0
    return parts


def cliques(plan: Plan) -> Parts:
    """The surrogate classification loss alone (lambda = 0), on classes alone."""
    loss = PosetLoss(plan.recipe.num_nearest, sigma=plan.recipe.sigma, anchors=plan.recipe.anchors)
    parts = _by_classes(plan, surrogate_sampler(plan), loss)
    parts.weights["metric_loss"] = 0.0
    return parts


def triplet(plan: Plan) -> Parts:
    """PML's triplet loss and miner on the surrogate classes."""
    miner = TripletMarginMiner(margin=0.2, type_of_triplets="semihard")
    return Parts(
        surrogate_sampler(plan),
        {"metric_loss": TripletMarginLoss(margin=0.2)},
        feature_fn(plan.start, plan.recipe),
        miners={"tuple_miner": miner},
    )


def ntxent(plan: Plan) -> Parts:
    """PML's NT-Xent on two augmented views of half as many images, which needs no classes."""
    return Parts(_two_views(plan), {"metric_loss": _instance_loss()}, keep_groups)


def kmeans(plan: Plan) -> Parts:
    """Multi-similarity loss and miner of PML on the labels of k-means."""
    start = _unmirrored(plan.start)
    grouping = KMeans(plan.num_clusters, random_state=plan.seed)
    return _multi_similarity(cluster_sampler(plan, grouping), feature_fn(start, plan.recipe))


def udml_ss(plan: Plan) -> Parts:
    """UDML-SS: k-means, and the rotation loss of 16 images of the batch.

    Each of the 16 passes the trunk four times more, turned before it is augmented, as published.
    """
    return _with_rotation(kmeans(plan), plan)


def tac_ccl(plan: Plan) -> Parts:
    """TAC-CCL, reconstructed: contrastive clustering about k-means clusters, and attention consistency.

    The centres are those of the batch. Each image passes the trunk twice more, unaugmented: as it is, without
    gradient, and moved.
    """
    parts = kmeans(plan)
    parts.losses = {"metric_loss": ContrastiveClusteringLoss()}
    parts.miners = {}
    trunk = plan.models["trunk"]
    assert isinstance(trunk, nn.Sequential)  # augmentation, network
    parts.losses["attention"] = AttentionConsistencyObjective(layer=f"1.{maps_layer(trunk[1])}")
    height, width = maps_size(trunk[1], plan.recipe.image_size)
    weight = plan.recipe.attention
    parts.weights["attention"] = float(height * width) ** 2 if weight is None else weight
    return parts


def concurl(plan: Plan) -> Parts:
    """ConCURL on two views of half as many images; L_ex trains the embedder itself."""
    recipe = plan.recipe
    consensus = ConsensusLoss(
        plan.num_clusters,
        num_transforms=recipe.num_transforms,
        alpha=recipe.population,
        gamma=recipe.consensus,
        train_prototypes=recipe.population > 0,
        seed=plan.seed,
    )
    bank = MemoryBankNCE(len(plan.start.features), dim=recipe.fc_dim, seed=plan.seed)
    objective = ConcurlObjective(plan.dim, consensus, bank, beta=recipe.exemplar, views=2)
    return Parts(_two_views(plan), {"concurl": objective}, keep_groups)


def stml(plan: Plan) -> Parts:
    """STML on queries with their nearest neighbours, in two views; the teacher sees the batch too.

    A batch is of whole queries: of 128 images with 5 nearest in 2 views 120 are left.
    """
    recipe, start = plan.recipe, _unmirrored(plan.start)
    views, nearest = 2, recipe.samples_per_cluster
    sampler = NeighborBatches(
        start.features,
        recipe.batch_size - recipe.batch_size % (views * nearest),
        samples_per_query=nearest,
        views=views,
        num_batches=recipe.iterations,
        seed=plan.seed,
    )
    objective = STMLObjective(plan.models, plan.dim, k=views * nearest)
    return Parts(sampler, {"stml": objective}, feature_fn(start, recipe))


def supervised(plan: Plan) -> Parts:
    """The ceiling: multi-similarity loss and miner on the true classes of the images to learn from."""
    labels = plan.start.labels
    if labels is None:
        raise ValueError("supervised needs the true classes of the images to learn from: there are none here")
    return _multi_similarity(cluster_sampler(plan, GivenLabels(labels)), keep_groups)


# --- Combinations


def posets_rotation(plan: Plan) -> Parts:
    """Posets with the rotation loss of UDML-SS."""
    return _with_rotation(posets(plan), plan)


def kmeans_poset_loss(plan: Plan) -> Parts:
    """The poset loss on the clusters of k-means; none is unassigned, so all samples are anchors."""
    parts, recipe = kmeans(plan), plan.recipe
    parts.losses = {"metric_loss": PosetLoss(recipe.num_nearest, sigma=recipe.sigma, anchors="all")}
    parts.miners = {"tuple_miner": NearestMedoidMiner(recipe.num_nearest, anchors="all")}
    return parts


def surrogate_multi_similarity(plan: Plan) -> Parts:
    """Multi-similarity loss and miner on the surrogate classes."""
    return _multi_similarity(surrogate_sampler(plan), feature_fn(plan.start, plan.recipe))


def kmeans_ntxent(plan: Plan) -> Parts:
    """Multi-similarity loss of k-means clusters, NT-Xent on two views of each image, with equal weights."""
    start = _unmirrored(plan.start)
    grouping = KMeans(plan.num_clusters, random_state=plan.seed)
    clusters, _ = _published_multi_similarity()
    losses = {"clusters": PseudoLabelLoss(clusters), "views": _instance_loss()}
    sampler = cluster_sampler(plan, grouping, views=2)
    return Parts(sampler, {"metric_loss": WeightedLosses(losses)}, feature_fn(start, plan.recipe))


def ntxent_feature(plan: Plan) -> Parts:
    """NT-Xent on two views, with the feature loss of posets: what is seen, and what HOG knew of it."""
    recipe = plan.recipe
    losses = {"views": _instance_loss(), "feature": _feature_loss(plan)}
    weights = {"views": 1.0, "feature": recipe.feature}
    return Parts(_two_views(plan), {"metric_loss": WeightedLosses(losses, weights)}, keep_groups)


METHODS: dict[str, Callable[[Plan], Parts]] = {
    "posets": posets,
    "cliques": cliques,
    "triplet": triplet,
    "ntxent": ntxent,
    "kmeans": kmeans,
    "udml-ss": udml_ss,
    "tac-ccl": tac_ccl,
    "concurl": concurl,
    "stml": stml,
    "posets+rotation": posets_rotation,
    "kmeans+poset-loss": kmeans_poset_loss,
    "surrogate+ms": surrogate_multi_similarity,
    "kmeans+ntxent": kmeans_ntxent,
    "ntxent+feature": ntxent_feature,
    "supervised": supervised,
}
"""Name to function."""


def check(method: str, recipe: Recipe, num_samples: int, num_clusters: int) -> None:
    """See that a method can draw its batches of so many samples, before any work is done.

    Args:
        method: one of `METHODS`.
        recipe: of the run.
        num_samples: to learn from, mirror images among them where they count.
        num_clusters: K where the recipe leaves it open.

    Raises:
        ValueError: for more clusters than there are pairs for, or a batch too small.
    """
    size, nearest = recipe.batch_size, recipe.samples_per_cluster
    clusters = recipe.num_clusters or num_clusters
    if method in CLUSTERED and 2 * clusters > num_samples:
        raise ValueError(
            f"{flag('num_clusters')} must leave at least two of {num_samples} images to a cluster, or there "
            f"is no pair to learn from, got {clusters}: use {num_samples // 2} or less"
        )
    least = {"stml": 4 * nearest, "supervised": 2 * nearest, **dict.fromkeys(CLUSTERED, 2 * nearest)}
    least["kmeans+ntxent"] *= 2  # views
    if size < least.get(method, 0):
        what = "two queries, their nearest and two views of each" if method == "stml" else "two clusters"
        raise ValueError(
            f"{flag('batch_size')} must be at least {least[method]} for {method}, {what} with "
            f"{flag('samples_per_cluster')} {nearest}, got {size}"
        )
    if method in TWO_VIEWS and size % 2:
        raise ValueError(
            f"{flag('batch_size')} must be even for {method}, two views of each image, got {size}"
        )
    if method == "stml" and nearest > num_samples:
        raise ValueError(
            f"{flag('samples_per_cluster')} must be at most the {num_samples} images, got {nearest}"
        )


# --- What they share


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


def _by_classes(plan: Plan, sampler: PseudoLabelSampler, metric_loss: nn.Module) -> Parts:
    """A classifier of the surrogate classes, and a metric loss."""
    return Parts(
        sampler,
        {"metric_loss": metric_loss, "classifier_loss": nn.CrossEntropyLoss()},
        feature_fn(plan.start, plan.recipe),
        networks={"classifier": lambda num_classes: nn.Linear(plan.recipe.fc_dim, num_classes)},
    )


def _poset_losses(plan: Plan) -> nn.Module:
    recipe = plan.recipe
    poset = PosetLoss(recipe.num_nearest, sigma=recipe.sigma, anchors=recipe.anchors)
    weights = {"poset": recipe.lam, "feature": recipe.feature}
    if not any(weights.values()):  # its weight is 0 then
        return poset
    parts: dict[str, nn.Module] = {"poset": PseudoLabelLoss(poset, unassigned="keep")}
    if recipe.feature:
        parts["feature"] = _feature_loss(plan)
    return WeightedLosses(parts, {name: weights[name] for name in parts})


def _feature_loss(plan: Plan) -> nn.Module:
    return FeatureLoss(plan.recipe.fc_dim, plan.start.features, plan.start.mirrored)


def _instance_loss() -> nn.Module:
    return IndexLoss(NTXentLoss(temperature=0.1))


def _multi_similarity(sampler: PseudoLabelSampler, features: FeatureFn | None) -> Parts:
    loss, miner = _published_multi_similarity()
    return Parts(sampler, {"metric_loss": loss}, features, miners={"tuple_miner": miner})


def _published_multi_similarity() -> tuple[nn.Module, nn.Module]:
    """PML's loss and miner with the values that UDML-SS published."""
    return MultiSimilarityLoss(alpha=2, beta=40, base=0.5), MultiSimilarityMiner(epsilon=0.1)


def _with_rotation(parts: Parts, plan: Plan) -> Parts:
    parts.losses["rotation"] = RotationObjective(RotationHead(plan.dim))
    parts.weights["rotation"] = plan.recipe.rotation
    return parts


def _two_views(plan: Plan) -> TwoViews:
    return TwoViews(len(plan.start.features), plan.recipe.batch_size, plan.recipe.iterations, plan.seed)


def _unmirrored(start: Start) -> Start:
    """Clusters and neighbours are of the samples as they are: features of mirror images are not wanted."""
    return replace(start, mirrored=None)


def _assignment(recipe: Recipe, seed: int) -> Any:
    if not recipe.refine:
        return None
    from pml_posets.assignment import RelaxedAssignment

    return RelaxedAssignment(min_size=recipe.min_size, random_state=seed)
