"""What JointTrainer is given, checked and tried on one batch before any work is done."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_metric_learning.losses import MultipleLosses
from pytorch_metric_learning.losses.base_metric_loss_function import BaseMetricLossFunction
from pytorch_metric_learning.trainers import (
    CascadedEmbeddings,
    DeepAdversarialMetricLearning,
    MetricLossOnly,
    TrainWithClassifier,
    TwoStreamMetricLoss,
)
from pytorch_metric_learning.trainers.base_trainer import BaseTrainer
from pytorch_metric_learning.utils import common_functions as c_f
from torch.utils.data import BatchSampler, Subset, default_collate

from .._networks import in_eval_mode
from .._random import seeded
from .._validation import as_count, as_real
from ..data.datasets import check_dataset
from ..losses.feature import FeatureLoss
from ..losses.pseudo_label import PseudoLabelLoss, WeightedLosses
from ..posets import Posets
from .objectives import PML_LOSSES

if TYPE_CHECKING:
    from .joint import JointTrainer

_IMAGES = 16  # looked at in a trial, spread over the data
_NEEDED = ("posets", "regroup", "set_epoch", "state_dict", "load_state_dict")
_OURS = {"sampler", "batch_size", "iterations_per_epoch", "data_and_label_getter"}
_OF_EMBEDDINGS = (BaseMetricLossFunction, MultipleLosses, PseudoLabelLoss, FeatureLoss, WeightedLosses)
_EMBEDDING = ("trunk", "embedder")
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


def check_mappings(needed: Mapping[str, Any], **optional: Any) -> None:
    """Raise a TypeError for what is no mapping, nor None where it is optional."""
    given = {name: value for name, value in optional.items() if value is not None}
    for name, value in {**needed, **given}.items():
        if not hasattr(value, "items"):
            raise TypeError(f"{name} must be a dict, got {value!r}")


def check_datasets(num_samples: int, **datasets: Any) -> None:
    """Raise a ValueError for datasets of another number of samples."""
    for name, data in datasets.items():
        if check_dataset(data, name) != num_samples:
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


def check_has_loss(given: type[Any]) -> None:
    """Raise a TypeError for a trainer class that is abstract."""
    if not any("calculate_loss" in vars(kind) for kind in given.__mro__ if kind is not BaseTrainer):
        raise TypeError(
            f"{given.__name__} computes no loss: use MetricLossOnly, TrainWithClassifier or subclasses"
        )


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
    for name in loss_funcs:
        if not isinstance(name, str) or not name or name != name.strip():
            raise ValueError(f"the name of a loss must be a string without spaces around it, got {name!r}")
    for name in _HISTORY:
        if name in loss_funcs:
            raise ValueError(f"loss_funcs has the name {name!r}, which the history has for another thing")
    for name, loss in loss_funcs.items():
        if name not in PML_LOSSES and isinstance(loss, _OF_EMBEDDINGS):
            kind, own = type(loss).__name__, "WeightedLosses or PML's MultipleLosses adds several"
            raise TypeError(
                f"loss_funcs has {name!r}, a {kind}, which takes embeddings; under names of your own stand "
                f'objectives, which take images and models: give it as "metric_loss" ({own})'
            )
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
    if not isinstance(loss_weights, Mapping | None):
        raise TypeError(f"loss_weights must be a dict of numbers, got {loss_weights!r}")
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
    functions = {name: options[name] for name in options if name.endswith("_hook") or name == "collate_fn"}
    check_functions(**functions, **(options.get("gradient_clippers") or {}))
    as_count(options.get("dataloader_num_workers", 0), "dataloader_num_workers", 0)
    return dict(options)


def check_functions(**given: Any) -> None:
    """Raise a TypeError for what cannot be called, unless it is None."""
    for name, function in given.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function, got {function!r}")


def check_schedules(schedulers: Mapping[str, Any], num_rounds: int, iterations: int) -> None:
    """Raise a ValueError for a schedule that is made for fewer steps than there will be."""
    for key, scheduler in schedulers.items():
        steps = num_rounds * (iterations if key.endswith("_by_iteration") else 1)
        total = getattr(scheduler, "total_steps", None) or steps
        if total < steps:
            raise ValueError(f"{key} has total_steps={total} of {steps}: it would end the run by an error")


# --- One batch through networks, losses and extraction


class Cast(torch.nn.Module):
    """Images in the dtype of the trainer, which casts them before the trunk."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(self.dtype)


def check_training_batch(joint: JointTrainer) -> None:
    """Put some images through collate_fn, networks and losses, as a step does, without gradients."""
    options = joint.trainer_options
    frozen = options.get("freeze_these", ())
    indices = _spread(len(joint.dataset))
    learned = any(name in PML_LOSSES for name in joint.loss_weights)  # else objectives run the networks
    models = [joint.models[name] for name in _EMBEDDING if learned and name in joint.models]
    network = torch.nn.Sequential(*models)
    with seeded(0), torch.no_grad():
        batch = (options.get("collate_fn") or default_collate)(joint.dataset.__getitems__(indices))
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            wanted = "(images, indices) of a list of (image, index)"
            raise TypeError(f"collate_fn must make {wanted}, got {type(batch).__name__}")
        dtype = _checked_dtype(batch[0], options.get("dtype"))
        images = c_f.to_device(batch[0], device=joint.device, dtype=dtype)
        try:
            with in_eval_mode(network), torch.enable_grad():
                embeddings = network(images)
        except RuntimeError as error:
            if isinstance(images, torch.Tensor) and not images.is_floating_point():
                raise TypeError(
                    f"the trunk does not take images of {images.dtype}: let the dataset scale them to 0..1 "
                    "(v2.ToDtype(torch.float32, scale=True)), or the trunk begin with BatchAugmentation"
                ) from error
            raise
    if not isinstance(embeddings, torch.Tensor) or embeddings.ndim < 2 or len(embeddings) != len(indices):
        got = tuple(embeddings.shape) if isinstance(embeddings, torch.Tensor) else type(embeddings).__name__
        count = len(indices)
        raise TypeError(f"trunk and embedder must return ({count}, D) for {count} images, got {got}")
    trained = [joint.models[name] for name in joint.models if name in _EMBEDDING and name not in frozen]
    to_learn = any(p.requires_grad for model in trained for p in model.parameters())
    if learned and to_learn and not embeddings.requires_grad:
        raise TypeError(
            "trunk and embedder return embeddings without a gradient, though they have weights to learn: do "
            "they detach them, or run under torch.no_grad?"
        )
    embeddings = embeddings.detach()
    if learned and not getattr(joint.sampler, "is_grouped", True):  # else the first step is the trial
        _try_losses(joint, embeddings, torch.tensor(indices, device=joint.device))


def _try_losses(joint: JointTrainer, embeddings: torch.Tensor, indices: torch.Tensor) -> None:
    """Put embeddings through copies of miner and losses, half of them in two classes, half unassigned."""
    labels = np.full(len(joint.dataset), -1)
    assigned = indices[: len(indices) // 2].cpu().numpy()
    if len(assigned) < 2:
        return
    labels[assigned] = np.arange(len(assigned)) % 2
    drawn = np.random.default_rng(0).normal(size=(len(labels), 2)).astype(np.float32)
    posets = Posets.build(drawn, labels, joint.sampler.num_nearest)
    views = getattr(joint.sampler, "views", 1)
    embeddings, indices = embeddings.repeat(views, 1), indices.repeat(views)
    with seeded(0), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what training batches are like
        try:
            losses, miners = copy.deepcopy((joint._components.for_classes(2), joint.mining_funcs))
        except Exception:
            return  # what cannot be copied is tried by the first step
        try:
            for part in (*losses.values(), *miners.values()):
                if hasattr(part, "bind"):
                    part.bind(posets)
                part.to(joint.device)
            tuples = miners["tuple_miner"](embeddings, indices) if miners else None
            if "metric_loss" in losses:
                losses["metric_loss"](embeddings, indices, tuples)
            if "classifier_loss" in losses:
                losses["classifier_loss"](losses["classifier"](embeddings), indices)
        except Exception as error:
            if hasattr(error, "add_note"):  # from Python 3.11 on
                error.add_note("raised by a trial of the losses on some images, before the first grouping")
            raise


def check_extraction(joint: JointTrainer) -> None:
    """Extract features of some images as a y-step does, and of one if the last batch will hold one."""
    if joint.num_rounds == 1 or joint.feature_fn is None:
        return
    count = len(joint.feature_dataset)
    try:
        joint.extract(Subset(joint.feature_dataset, _spread(count)), progress=False, num_workers=0)
        if count % joint.feature_options.get("batch_size", 128) == 1:
            joint.extract(Subset(joint.feature_dataset, [count - 1]), progress=False, num_workers=0)
    except (TypeError, ValueError, RuntimeError) as error:
        if any(joint.feature_fn is vars(kind).get("extract") for kind in type(joint).__mro__):  # the default
            if joint.trainer_options.get("collate_fn") is None:
                raise
            raise ValueError(
                f"features are extracted without your collate_fn, which fails ({error}): give "
                "feature_dataset, with images of one size, or a feature_fn"
            ) from error
        warnings.warn(f"extract would fail, if your feature_fn calls it: {error}", stacklevel=4)


def _spread(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(_IMAGES, count)).astype(int)).tolist()


def _checked_dtype(images: Any, dtype: torch.dtype | None) -> torch.dtype | None:
    whole = isinstance(images, torch.Tensor) and not images.is_floating_point()
    if whole and dtype is not None and dtype.is_floating_point:
        raise ValueError(
            f"dtype={dtype} would make numbers in 0..255 of images of {images.dtype}: let the dataset scale "
            "them to 0..1 (v2.ToDtype(torch.float32, scale=True)), and leave dtype out"
        )
    return dtype
