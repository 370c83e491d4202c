"""Losses that run the networks themselves, beside those of a PML trainer that are given its embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytorch_metric_learning.trainers import MetricLossOnly
from pytorch_metric_learning.utils import common_functions as c_f

__all__ = ["PML_LOSSES", "trainer_with_objectives"]

PML_LOSSES = ("metric_loss", "classifier_loss")
"""The names that PML's trainers give to losses; any other name of a loss is an objective's."""


class _WithObjectives:
    """A mixin for PML trainer classes."""

    objective_names: tuple[str, ...] = ()

    def modify_schema(self) -> None:
        """Let PML's checks know the objectives and their optimizers."""
        super().modify_schema()  # type: ignore[misc]
        losses = self.schema["loss_funcs"]  # type: ignore[attr-defined]
        losses.keys += list(self.objective_names)
        if not any(name in PML_LOSSES for name in self.loss_funcs):  # type: ignore[attr-defined]
            losses.important = []  # PML would warn that its own are missing

    def calculate_loss(self, curr_batch: Any) -> None:
        """PML's losses if there are any, then the objectives, with the same images."""
        trainer: Any = self
        images, indices = curr_batch
        images = c_f.to_device(images, device=trainer.data_device, dtype=trainer.dtype)
        if any(name in PML_LOSSES for name in trainer.loss_funcs):
            super().calculate_loss((images, indices))  # type: ignore[misc]
        for name in self.objective_names:
            if trainer.loss_weights[name] > 0:
                trainer.losses[name] = trainer.loss_funcs[name](images, indices, trainer.models)


def trainer_with_objectives(names: Sequence[str], trainer_class: type[Any] = MetricLossOnly) -> type[Any]:
    """A PML trainer class that computes objectives beside its own losses.

    An objective is a module in `loss_funcs` under a name that PML's trainers do not have, called once an
    iteration as objective(images, indices, models) -> scalar: images (B, C, H, W) as the loader gives them,
    on the trainer's device, dataset indices (B,), and the trainer's models by name. Its share of the total is
    its weight in `loss_weights`; its own weights are trained by the optimizer "<name>_optimizer".

    Args:
        names: of the objectives; without any the class itself is returned.
        trainer_class: MetricLossOnly (default), TrainWithClassifier or a subclass of PML's BaseTrainer.

    Returns:
        A subclass, which computes no embeddings where there is neither a metric nor a classification loss.

    Example:
        >>> trainer_with_objectives(["rotation"]).__name__
        'MetricLossOnlyWithObjectives'
    """
    if not names:
        return trainer_class
    name = f"{trainer_class.__name__}WithObjectives"
    return type(name, (_WithObjectives, trainer_class), {"objective_names": tuple(names)})
