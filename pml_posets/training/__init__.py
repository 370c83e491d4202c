"""Rounds: grouping and network take turns, inside the trainers of pytorch-metric-learning."""

from .averaging import moving_average
from .joint import JointTrainer
from .objectives import trainer_with_objectives

__all__ = [
    "JointTrainer",
    "moving_average",
    "trainer_with_objectives",
]
