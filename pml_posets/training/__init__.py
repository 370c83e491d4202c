"""Rounds: grouping and network take turns, inside the trainers of pytorch-metric-learning."""

from .averaging import moving_average
from .cached_maps import CachedMaps, FromLayer
from .finetune import freeze_batch_norm, parameter_groups, warm_up
from .joint import JointTrainer
from .judging import LabelFreeJudge
from .objectives import trainer_with_objectives

__all__ = [
    "CachedMaps",
    "FromLayer",
    "JointTrainer",
    "LabelFreeJudge",
    "freeze_batch_norm",
    "moving_average",
    "parameter_groups",
    "trainer_with_objectives",
    "warm_up",
]
