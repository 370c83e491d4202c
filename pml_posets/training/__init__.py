"""Rounds: grouping and network take turns, inside the trainers of pytorch-metric-learning."""

from .joint import JointTrainer, keep_groups
from .objectives import trainer_with_objectives

__all__ = [
    "JointTrainer",
    "keep_groups",
    "trainer_with_objectives",
]
