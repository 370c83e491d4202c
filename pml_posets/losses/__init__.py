"""Losses for pytorch-metric-learning, one file each."""

from .feature_loss import FeatureLoss
from .poset_loss import Margin, PosetLoss, poset_terms
from .wrappers import PosetCrossBatchMemory, PosetSelfSupervisedLoss

__all__ = [
    "FeatureLoss",
    "Margin",
    "PosetCrossBatchMemory",
    "PosetLoss",
    "PosetSelfSupervisedLoss",
    "poset_terms",
]
