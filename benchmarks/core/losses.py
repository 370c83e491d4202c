"""What the methods minimize: each loss an entry of a table, a function that adds itself to the parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss, NTXentLoss, TripletMarginLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner, TripletMarginMiner
from torch import nn

from benchmarks.core.groupings import GROUPINGS, FeatureFn, Plan
from benchmarks.core.methods import METHODS, Method
from benchmarks.core.networks import last_maps
from pml_posets.losses.feature import FeatureLoss
from pml_posets.losses.poset import PosetLoss
from pml_posets.losses.pseudo_label import PseudoLabelLoss, WeightedLosses
from pml_posets.methods.concurl import ConcurlObjective, ConsensusLoss
from pml_posets.methods.contrastive_clustering import ContrastiveClusteringLoss
from pml_posets.methods.memory_bank import MemoryBankNCE
from pml_posets.methods.stml import STMLObjective
from pml_posets.methods.tac_ccl import AttentionConsistencyObjective
from pml_posets.methods.udml_ss import RotationHead, RotationObjective
from pml_posets.miners import NearestMedoidMiner
from pml_posets.posets import Posets


@dataclass
class Parts:
    """What a `JointTrainer` needs to train by a method.

    Args:
        sampler: its batches.
        feature_fn: what groups are made of from round 2 on; None: the network's features.
        losses: PML's under PML's names, objectives under their own.
        weights: of the losses; 1 where there is none.
        miners: PML's "tuple_miner", if any.
        networks: further networks, functions num_classes -> module.
        metric: losses that are summed to "metric_loss", and their weights where these are not 1.
    """

    sampler: Any
    feature_fn: FeatureFn | None
    losses: dict[str, nn.Module] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    miners: dict[str, Any] = field(default_factory=dict)
    networks: dict[str, Any] = field(default_factory=dict)
    metric: dict[str, tuple[nn.Module, float]] = field(default_factory=dict)


class IndexLoss(nn.Module):
    """A PML loss whose labels are the dataset indices themselves: two views of one sample are a pair."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def bind(self, posets: Posets) -> None:
        """Indices need no posets."""

    def forward(self, embeddings: torch.Tensor, indices: torch.Tensor, *rest: Any) -> torch.Tensor:
        """The inner loss of (B, D) embeddings and (B,) dataset indices."""
        return self.inner(embeddings, indices.to(embeddings.device), *rest)


def build(name: str, plan: Plan) -> Parts:
    """The parts of a method."""
    method = METHODS.get(name, Method(""))
    if not method.losses:
        learned = ", ".join(name for name, one in METHODS.items() if one.losses)
        raise ValueError(f"method must be one of {learned}, got {name!r}")
    plan = replace(plan, recipe=replace(plan.recipe, **method.recipe))
    parts = Parts(*GROUPINGS[method.grouping](plan, method))
    for key in method.losses:
        LOSSES[key](plan, parts)
    if len(parts.metric) > 1:
        losses = {
            key: loss if hasattr(loss, "bind") else PseudoLabelLoss(loss)
            for key, (loss, _) in parts.metric.items()
        }
        weights = {key: weight for key, (_, weight) in parts.metric.items()}
        parts.losses["metric_loss"] = WeightedLosses(losses, weights)
        parts.miners = {}  # its pairs are of one of the losses
    elif parts.metric:
        ((loss, _),) = parts.metric.values()
        parts.losses = {"metric_loss": loss, **parts.losses}
    return parts


# --- Losses: each adds itself to the parts


def surrogate_classification(plan: Plan, parts: Parts) -> None:
    """Cross-entropy of the surrogate classes (L1), beside a poset loss of weight 0."""
    recipe = plan.recipe
    parts.losses["metric_loss"] = PosetLoss(recipe.num_nearest, sigma=recipe.sigma, anchors=recipe.anchors)
    parts.losses["classifier_loss"] = nn.CrossEntropyLoss()
    parts.networks["classifier"] = lambda num_classes: nn.Linear(recipe.fc_dim, num_classes)
    parts.weights["metric_loss"] = 0.0


def posets(plan: Plan, parts: Parts) -> None:
    """L1 + lambda L2 (Eq. 2) and the feature loss; representatives are those of the round, R in Eq. 6."""
    recipe = plan.recipe
    surrogate_classification(plan, parts)
    parts.weights["classifier_loss"] = recipe.classification
    parts.miners["tuple_miner"] = NearestMedoidMiner(recipe.num_nearest, anchors=recipe.anchors)
    if not recipe.lam and not recipe.feature:
        return
    losses: dict[str, nn.Module] = {
        "poset": PseudoLabelLoss(parts.losses["metric_loss"], unassigned="keep"),
    }
    if recipe.feature:
        losses["feature"] = feature_loss(plan)
    weights = {"poset": recipe.lam, "feature": recipe.feature}
    parts.losses["metric_loss"] = WeightedLosses(losses, {name: weights[name] for name in losses})
    parts.weights["metric_loss"] = 1.0


def medoids(plan: Plan, parts: Parts) -> None:
    """The poset loss with all samples for anchors, of a grouping that leaves nothing unassigned."""
    recipe = plan.recipe
    parts.metric["medoids"] = PosetLoss(recipe.num_nearest, sigma=recipe.sigma, anchors="all"), 1.0
    parts.miners["tuple_miner"] = NearestMedoidMiner(recipe.num_nearest, anchors="all")


def triplet(plan: Plan, parts: Parts) -> None:
    """PML's triplet loss and miner."""
    parts.metric["triplet"] = TripletMarginLoss(margin=0.2), 1.0
    parts.miners["tuple_miner"] = TripletMarginMiner(margin=0.2, type_of_triplets="semihard")


def multi_similarity(plan: Plan, parts: Parts) -> None:
    """PML's multi-similarity loss and miner, with the values that UDML-SS published."""
    parts.metric["clusters"] = MultiSimilarityLoss(alpha=2, beta=40, base=0.5), 1.0
    parts.miners["tuple_miner"] = MultiSimilarityMiner(epsilon=0.1)


def instance(plan: Plan, parts: Parts) -> None:
    """PML's NT-Xent on two views: each image a class of its own."""
    parts.metric["views"] = IndexLoss(NTXentLoss(temperature=0.1)), 1.0


def feature(plan: Plan, parts: Parts) -> None:
    """The feature loss beside another metric loss."""
    parts.metric["feature"] = feature_loss(plan), plan.recipe.feature


def feature_loss(plan: Plan) -> FeatureLoss:
    """Predicts the first similarities of each image, or the targets in their place."""
    start = plan.start
    loss = FeatureLoss(plan.recipe.fc_dim, *(start.targets or (start.features, start.mirrored)))
    if plan.recipe.trunk == "hog":  # its embedding begins as a prediction of the features
        nn.init.eye_(loss.map.weight)
        nn.init.zeros_(loss.map.bias)
    return loss


def rotation(plan: Plan, parts: Parts) -> None:
    """The rotation loss of 16 images of the batch, each turned four times before it is augmented."""
    parts.losses["rotation"] = RotationObjective(RotationHead(plan.dim))
    parts.weights["rotation"] = plan.recipe.rotation


def contrastive_clustering(plan: Plan, parts: Parts) -> None:
    """Contrastive clustering about the centers of the batch."""
    parts.metric["clusters"] = ContrastiveClusteringLoss(), 1.0


def attention(plan: Plan, parts: Parts) -> None:
    """Attention consistency: each image passes the trunk twice more, unaugmented, once moved."""
    _, network = plan.models["trunk"].children()  # behind the augmentation
    layer, height, width = last_maps(network, plan.recipe.image_size)
    parts.losses["attention"] = AttentionConsistencyObjective(layer=f"1.{layer}")
    weight = plan.recipe.attention
    parts.weights["attention"] = float(height * width) ** 2 if weight is None else weight


def concurl(plan: Plan, parts: Parts) -> None:
    """ConCURL, whose L_ex trains the embedder itself."""
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
    parts.losses["concurl"] = ConcurlObjective(plan.dim, consensus, bank, beta=recipe.exemplar, views=2)


def stml(plan: Plan, parts: Parts) -> None:
    """STML, whose teacher sees the batch too."""
    nearest = 2 * plan.recipe.samples_per_cluster
    parts.losses["stml"] = STMLObjective(plan.models, plan.dim, k=nearest)


LOSSES: dict[str, Callable[[Plan, Parts], None]] = {
    "posets": posets,
    "classes": surrogate_classification,
    "medoids": medoids,
    "triplet": triplet,
    "instance": instance,
    "feature": feature,
    "multi-similarity": multi_similarity,
    "rotation": rotation,
    "clustering": contrastive_clustering,
    "attention": attention,
    "concurl": concurl,
    "stml": stml,
}
"""Name to function."""
