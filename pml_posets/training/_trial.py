"""One batch through networks, losses and feature extraction before the first grouping of a run."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_metric_learning.utils import common_functions as c_f
from torch.utils.data import Subset, default_collate

from .._random import preserved_randomness, seed_everything
from ..posets import Posets
from .objectives import PML_LOSSES

if TYPE_CHECKING:
    from .joint import JointTrainer

__all__ = ["Cast", "check_extraction", "check_training_batch"]

_IMAGES = 16  # looked at, spread over the data


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
    indices = _spread(len(joint.dataset))
    learned = any(name in PML_LOSSES for name in joint.loss_weights)  # else objectives run the networks
    models = [joint.models[name] for name in ("trunk", "embedder") if learned and name in joint.models]
    modes = [(module, module.training) for model in models for module in model.modules()]
    with preserved_randomness(), torch.no_grad():
        seed_everything(0)
        batch = (options.get("collate_fn") or default_collate)(joint.dataset.__getitems__(indices))
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            wanted = "(images, indices) of a list of (image, index)"
            raise TypeError(f"collate_fn must make {wanted}, got {type(batch).__name__}")
        dtype = _checked_dtype(batch[0], options.get("dtype"))
        images = c_f.to_device(batch[0], device=joint.device, dtype=dtype)
        try:
            embeddings = images
            for model in models:
                embeddings = model.eval()(embeddings)
        except RuntimeError as error:
            if isinstance(images, torch.Tensor) and not images.is_floating_point():
                raise TypeError(
                    f"the trunk does not take images of {images.dtype}: let the dataset scale them to 0..1 "
                    "(v2.ToDtype(torch.float32, scale=True)), or the trunk begin with BatchAugmentation"
                ) from error
            raise
        finally:
            for module, mode in modes:
                module.training = mode
    if not isinstance(embeddings, torch.Tensor) or embeddings.ndim < 2 or len(embeddings) != len(indices):
        got = tuple(embeddings.shape) if isinstance(embeddings, torch.Tensor) else type(embeddings).__name__
        count = len(indices)
        raise TypeError(f"trunk and embedder must return ({count}, D) for {count} images, got {got}")
    if learned and not joint.sampler.is_grouped:  # else the first step is the trial
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
    with preserved_randomness(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what training batches are like
        seed_everything(0)
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
