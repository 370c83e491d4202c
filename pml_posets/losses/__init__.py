"""Losses for pytorch-metric-learning, one file each, and the adapters that bind them to posets."""

from .feature import FeatureLoss
from .poset import Margin, PosetLoss, poset_terms
from .pseudo_label import PseudoLabelLoss, PseudoLabelMiner, WeightedLosses
from .wrappers import PosetCrossBatchMemory, PosetSelfSupervisedLoss

__all__ = [
    "FeatureLoss",
    "Margin",
    "PosetCrossBatchMemory",
    "PosetLoss",
    "PosetSelfSupervisedLoss",
    "PseudoLabelLoss",
    "PseudoLabelMiner",
    "WeightedLosses",
    "poset_terms",
]
