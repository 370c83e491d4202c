"""The methods of the benchmarks: for each a small function that says what it samples and what it minimises.

An iteration shows every method the same number of images, `batch_size`, by the same trunk, augmentation and
optimizer. What the losses of some do with them takes more passes through the trunk, which is said there:
udml-ss and posets+rotation turn 16 of the images, tac-ccl moves each once, and the teacher of stml looks at
each too.
"""

from __future__ import annotations

from collections.abc import Callable

from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import TripletMarginMiner

from benchmarks.core.method_parts import (
    Parts,
    Plan,
    by_classes,
    cluster_sampler,
    feature_fn,
    feature_loss,
    instance_loss,
    multi_similarity,
    poset_losses,
    published_multi_similarity,
    surrogate_sampler,
    two_views,
    unmirrored,
    with_rotation,
)
from benchmarks.core.recipes import Recipe, flag
from benchmarks.core.trunks import maps_layer, maps_size
from pml_posets.grouping.kmeans import KMeansGrouping
from pml_posets.losses.poset import PosetLoss
from pml_posets.losses.pseudo_label import PseudoLabelLoss, WeightedLosses
from pml_posets.methods.concurl import ConcurlObjective, ConsensusLoss
from pml_posets.methods.contrastive_clustering import ContrastiveClusteringLoss
from pml_posets.methods.memory_bank import MemoryBankNCE
from pml_posets.methods.stml import STMLObjective
from pml_posets.methods.tac_ccl import AttentionConsistencyObjective
from pml_posets.miners import NearestMedoidMiner
from pml_posets.samplers.neighbor_batches import NeighborBatches
from pml_posets.samplers.pseudo_label import GivenLabels
from pml_posets.training.joint import keep_groups

CLUSTERED = ("kmeans", "udml-ss", "tac-ccl", "kmeans+poset-loss", "kmeans+ntxent")
"""Methods whose pseudo-labels are those of k-means."""
TWO_VIEWS = ("ntxent", "concurl", "kmeans+ntxent", "ntxent+feature")
"""Methods that see two views of each image of a batch."""
OF_ONE_PROCESS = ("udml-ss", "tac-ccl", "concurl", "stml", "posets+rotation")
"""Methods with an objective, which runs the networks itself: several processes cannot share it."""


# --- The published methods


def posets(plan: Plan) -> Parts:
    """Surrogate classes and the posets about them (Eq. 2), with a feature loss."""
    recipe = plan.recipe
    parts = by_classes(plan, surrogate_sampler(plan, posets=True), poset_losses(plan))
    # The representatives are those of the round, R in Eq. 6.
    parts.miners["tuple_miner"] = NearestMedoidMiner(recipe.num_nearest, anchors=recipe.anchors)
    parts.weights["classifier_loss"] = recipe.classification
    parts.weights["metric_loss"] = 1.0 if recipe.lam or recipe.feature else 0.0
    return parts


def cliques(plan: Plan) -> Parts:
    """The surrogate classification loss alone (lambda = 0), on classes alone."""
    loss = PosetLoss(plan.recipe.num_nearest, sigma=plan.recipe.sigma, anchors=plan.recipe.anchors)
    parts = by_classes(plan, surrogate_sampler(plan), loss)
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
    return Parts(two_views(plan), {"metric_loss": instance_loss()}, keep_groups)


def kmeans(plan: Plan) -> Parts:
    """Multi-similarity loss and miner of PML on the labels of k-means."""
    start = unmirrored(plan.start)
    grouping = KMeansGrouping(plan.num_clusters, random_state=plan.seed)
    return multi_similarity(cluster_sampler(plan, grouping), feature_fn(start, plan.recipe))


def udml_ss(plan: Plan) -> Parts:
    """UDML-SS: k-means, and the rotation loss of 16 images of the batch.

    Each of the 16 passes the trunk four times more, turned before it is augmented, as published.
    """
    return with_rotation(kmeans(plan), plan)


def tac_ccl(plan: Plan) -> Parts:
    """TAC-CCL, reconstructed: contrastive clustering about k-means clusters, and attention consistency.

    The centres are those of the batch. Each image passes the trunk twice more, unaugmented: as it is, without
    gradient, and moved.
    """
    parts = kmeans(plan)
    parts.losses = {"metric_loss": ContrastiveClusteringLoss()}
    parts.miners = {}
    _, network = plan.models["trunk"].children()  # behind the augmentation
    parts.losses["attention"] = AttentionConsistencyObjective(layer=f"1.{maps_layer(network)}")
    height, width = maps_size(network, plan.recipe.image_size)
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
    return Parts(two_views(plan), {"concurl": objective}, keep_groups)


def stml(plan: Plan) -> Parts:
    """STML on queries with their nearest neighbours, in two views; the teacher sees the batch too.

    A batch is of whole queries: of 128 images with 5 nearest in 2 views 120 are left.
    """
    recipe, start = plan.recipe, unmirrored(plan.start)
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
    return multi_similarity(cluster_sampler(plan, GivenLabels(labels)), keep_groups)


# --- Combinations


def posets_rotation(plan: Plan) -> Parts:
    """Posets with the rotation loss of UDML-SS."""
    return with_rotation(posets(plan), plan)


def kmeans_poset_loss(plan: Plan) -> Parts:
    """The poset loss on the clusters of k-means; none is unassigned, so all samples are anchors."""
    parts, recipe = kmeans(plan), plan.recipe
    parts.losses = {"metric_loss": PosetLoss(recipe.num_nearest, sigma=recipe.sigma, anchors="all")}
    parts.miners = {"tuple_miner": NearestMedoidMiner(recipe.num_nearest, anchors="all")}
    return parts


def surrogate_multi_similarity(plan: Plan) -> Parts:
    """Multi-similarity loss and miner on the surrogate classes."""
    return multi_similarity(surrogate_sampler(plan), feature_fn(plan.start, plan.recipe))


def kmeans_ntxent(plan: Plan) -> Parts:
    """Multi-similarity loss of k-means clusters, NT-Xent on two views of each image, with equal weights."""
    start = unmirrored(plan.start)
    grouping = KMeansGrouping(plan.num_clusters, random_state=plan.seed)
    clusters, _ = published_multi_similarity()
    losses = {"clusters": PseudoLabelLoss(clusters), "views": instance_loss()}
    sampler = cluster_sampler(plan, grouping, views=2)
    return Parts(sampler, {"metric_loss": WeightedLosses(losses)}, feature_fn(start, plan.recipe))


def ntxent_feature(plan: Plan) -> Parts:
    """NT-Xent on two views, with the feature loss of posets: what is seen, and what HOG knew of it."""
    recipe = plan.recipe
    losses = {"views": instance_loss(), "feature": feature_loss(plan)}
    weights = {"views": 1.0, "feature": recipe.feature}
    return Parts(two_views(plan), {"metric_loss": WeightedLosses(losses, weights)}, keep_groups)


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
