"""Losses for pytorch-metric-learning, one file each."""

from .feature_loss import FeatureLoss
from .poset_loss import Margin, PosetLoss, poset_terms
from .rotation_loss import RotationHead, RotationObjective, rotate_images, rotation_cross_entropy
from .wrappers import PosetCrossBatchMemory, PosetSelfSupervisedLoss

__all__ = [
    "FeatureLoss",
    "Margin",
    "PosetCrossBatchMemory",
    "PosetLoss",
    "PosetSelfSupervisedLoss",
    "RotationHead",
    "RotationObjective",
    "poset_terms",
    "rotate_images",
    "rotation_cross_entropy",
]
