"""Losses for pytorch-metric-learning, one file each."""

from .attention_consistency import (
    AttentionConsistencyObjective,
    attention_consistency_loss,
    cross_attention,
    random_affines,
)
from .concurl import ConcurlObjective
from .consensus_loss import ConsensusLoss, RandomDiagonals, RandomProjections, SpaceKind, sinkhorn
from .contrastive_clustering import CentreForm, ContrastiveClusteringLoss
from .feature_loss import FeatureLoss
from .memory_bank import MemoryBankNCE
from .poset_loss import Margin, PosetLoss, poset_terms
from .relaxed_contrastive import (
    STMLObjective,
    contextual_similarity,
    relation_divergence,
    relaxed_contrastive_loss,
    teacher_similarity,
)
from .rotation_loss import RotationHead, RotationObjective, rotate_images, rotation_cross_entropy
from .wrappers import PosetCrossBatchMemory, PosetSelfSupervisedLoss

__all__ = [
    "AttentionConsistencyObjective",
    "CentreForm",
    "ConcurlObjective",
    "ConsensusLoss",
    "ContrastiveClusteringLoss",
    "FeatureLoss",
    "Margin",
    "MemoryBankNCE",
    "PosetCrossBatchMemory",
    "PosetLoss",
    "PosetSelfSupervisedLoss",
    "RandomDiagonals",
    "RandomProjections",
    "RotationHead",
    "RotationObjective",
    "STMLObjective",
    "SpaceKind",
    "attention_consistency_loss",
    "contextual_similarity",
    "cross_attention",
    "poset_terms",
    "random_affines",
    "relation_divergence",
    "relaxed_contrastive_loss",
    "rotate_images",
    "rotation_cross_entropy",
    "sinkhorn",
    "teacher_similarity",
]
