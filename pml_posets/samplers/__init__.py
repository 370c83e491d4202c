"""Batches of dataset indices: surrogate classes with their posets, or neighbors."""

from .neighbor_batches import NeighborBatches
from .pseudo_label import GivenLabels, PseudoLabelProvider, PseudoLabelSampler

__all__ = [
    "GivenLabels",
    "NeighborBatches",
    "PseudoLabelProvider",
    "PseudoLabelSampler",
]
