"""Losses for pytorch-metric-learning, one file each, and the adapters that bind them to posets."""

import warnings
from typing import Any

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


def __getattr__(name: str) -> Any:
    """Names that were here in version 0.1.0 and are in `pml_posets.methods` now."""
    from .. import methods

    if name not in methods.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{name} has moved: import it from pml_posets.methods", DeprecationWarning, stacklevel=2)
    return getattr(methods, name)
