"""What JointTrainer is given, checked before any work is done."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_metric_learning.trainers import (
    CascadedEmbeddings,
    DeepAdversarialMetricLearning,
    MetricLossOnly,
    TrainWithClassifier,
    TwoStreamMetricLoss,
)
from pytorch_metric_learning.trainers.base_trainer import BaseTrainer
from torch.utils.data import BatchSampler

from .._validation import as_real

__all__ = [
    "check_datasets",
    "check_names",
    "check_options",
    "check_sampler",
    "check_trainer_class",
    "check_weights",
]

_NEEDED = ("posets", "regroup", "set_epoch", "state_dict", "load_state_dict")
_OURS = {"sampler", "batch_size", "iterations_per_epoch", "data_and_label_getter"}
_HISTORY = ("total_loss", "round", "iteration")
_REFUSED = {
    CascadedEmbeddings: "its losses and miners each see a slice of the embedding",
    TwoStreamMetricLoss: "it takes two images a sample",
    DeepAdversarialMetricLearning: "it trains a generator on losses of its own",
}


def check_sampler(sampler: Any) -> None:
    """Raise a TypeError for what is no batch sampler with posets."""
    if not isinstance(sampler, BatchSampler) or not all(hasattr(type(sampler), name) for name in _NEEDED):
        raise TypeError(
            f"sampler must be a PseudoLabelSampler, or a BatchSampler with {', '.join(_NEEDED)}, "
            f"got {type(sampler).__name__}"
        )


def check_datasets(num_samples: int, **datasets: Any) -> None:
    """Raise a ValueError for datasets of another number of samples."""
    for name, data in datasets.items():
        if len(data) != num_samples:
            found = f"{len(data)}: was it filtered after the features were extracted?"
            raise ValueError(f"{name} must have {num_samples} samples like the sampler's, got {found}")


def check_trainer_class(given: Any, models: Mapping[str, Any]) -> type[Any]:
    """The PML trainer class; for None TrainWithClassifier if there is a classifier, else MetricLossOnly."""
    if given is None:
        return TrainWithClassifier if "classifier" in models else MetricLossOnly
    if not isinstance(given, type) or not issubclass(given, BaseTrainer):
        raise TypeError(f"trainer_class must be a class of PML trainers, got {given!r}")
    for refused, reason in _REFUSED.items():
        if issubclass(given, refused):
            advice = "use MetricLossOnly, TrainWithClassifier or subclasses, or an objective in loss_funcs"
            raise TypeError(f"JointTrainer does not support {refused.__name__} ({reason}): {advice}")
    return given


def check_names(
    trainer_class: type[Any],
    models: Mapping[str, Any],
    loss_funcs: Mapping[str, Any],
    mining_funcs: Mapping[str, Any],
    freeze_these: Any,
) -> None:
    """Check names that the trainer class would refuse or not look at."""
    if not isinstance(models.get("trunk"), torch.nn.Module):
        raise TypeError('models must have a module "trunk"')
    for name in _HISTORY:
        if name in loss_funcs:
            raise ValueError(f"loss_funcs has the name {name!r}, which the history has for another thing")
    if freeze_these and (unknown := sorted(set(freeze_these) - {*models, *loss_funcs})):
        known = [*models, *loss_funcs]
        raise ValueError(f"freeze_these has {unknown}, but the models and losses are {known}")
    allowed = {"models": ["trunk", "embedder"], "mining_funcs": ["tuple_miner", "subset_batch_miner"]}
    if trainer_class is TrainWithClassifier:
        allowed["models"].append("classifier")
    elif trainer_class is not MetricLossOnly:  # a subclass may have names of its own
        return
    for what, found in (("models", models), ("mining_funcs", mining_funcs)):
        if unknown := sorted(set(found) - set(allowed[what])):
            kind, names = trainer_class.__name__, ", ".join(allowed[what])
            raise ValueError(f"{what} has the names {unknown}, which {kind} does not use: use {names}")
    if "classifier_loss" in loss_funcs and "classifier" not in models:
        raise ValueError('loss_funcs has a "classifier_loss", but models no "classifier"')
    if callable(models.get("classifier")) and "classifier_loss" not in loss_funcs:
        raise ValueError('models has a "classifier", but loss_funcs no "classifier_loss" to train it')


def check_weights(loss_weights: Mapping[str, Any] | None, loss_funcs: Mapping[str, Any]) -> dict[str, float]:
    """The weight of each loss, a float from 0, at least one of them above 0; None for all 1."""
    given = dict.fromkeys(loss_funcs, 1.0) if loss_weights is None else loss_weights
    names = sorted(loss_funcs)
    if sorted(given) != names:
        raise ValueError(f"loss_weights must have the keys of loss_funcs, {names}, got {sorted(given)}")
    weights = {name: as_real(w, f"the weight of {name}", low=0) for name, w in given.items()}
    if not any(weights.values()):
        raise ValueError(f"at least one loss must have a weight above 0, got {weights}: nothing would learn")
    return weights


def check_options(trainer_class: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of PML's trainer, or a TypeError for one that it does not have."""
    known = {*inspect.signature(trainer_class).parameters, *inspect.signature(BaseTrainer).parameters}
    for name in options:
        if name in _OURS or name not in known:
            listed = ", ".join(sorted(known - _OURS - {"self", "args", "kwargs"}))
            kinds = f"JointTrainer or {trainer_class.__name__}"
            raise TypeError(f"{name!r} is no option of {kinds}: these are {listed}")
    return dict(options)
