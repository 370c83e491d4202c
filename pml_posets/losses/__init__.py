"""Losses for pytorch-metric-learning, one file each."""

from .attention_consistency import (
    AttentionConsistencyObjective,
    attention_consistency_loss,
    cross_attention,
    random_affines,
)
from .contrastive_clustering import CentreForm, ContrastiveClusteringLoss
from .feature_loss import FeatureLoss
from .poset_loss import Margin, PosetLoss, poset_terms
from .rotation_loss import RotationHead, RotationObjective, rotate_images, rotation_cross_entropy
from .wrappers import PosetCrossBatchMemory, PosetSelfSupervisedLoss

__all__ = [
    "AttentionConsistencyObjective",
    "CentreForm",
    "ContrastiveClusteringLoss",
    "FeatureLoss",
    "Margin",
    "PosetCrossBatchMemory",
    "PosetLoss",
    "PosetSelfSupervisedLoss",
    "RotationHead",
    "RotationObjective",
    "attention_consistency_loss",
    "cross_attention",
    "poset_terms",
    "random_affines",
    "rotate_images",
    "rotation_cross_entropy",
]
