"""Losses for pytorch-metric-learning, one file each."""

from .poset_loss import Margin, PosetLoss, poset_terms
from .wrappers import PosetCrossBatchMemory, PosetSelfSupervisedLoss

__all__ = ["Margin", "PosetCrossBatchMemory", "PosetLoss", "PosetSelfSupervisedLoss", "poset_terms"]
