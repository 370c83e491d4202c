"""The training runs of the benchmarks: one recipe, several methods, the same budget for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.core import embedding, hog_trunk, losses, networks
from benchmarks.core.cached import CachedTrunk
from benchmarks.core.groupings import Plan, Start
from benchmarks.core.logs import RunLog
from benchmarks.core.recipes import Choices, Recipe
from pml_posets._random import derive_seeds, preserved_randomness, seed_everything
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.data.datasets import WithMirrorImages
from pml_posets.distributed.sharing import from_main
from pml_posets.training.finetune import freeze_batch_norm
from pml_posets.training.joint import JointTrainer


def train(
    method: str,
    images: Any,
    start: Start,
    recipe: Recipe,
    *,
    seed: int,
    device: str = "cpu",
    models: dict[str, nn.Module] | None = None,
    log: RunLog | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    start_of_round: Callable[[JointTrainer], Any] | None = None,
    end_of_round: Callable[[JointTrainer], Any] | None = None,
    num_workers: int = 0,
    output_dir: Path | None = None,
    cache: Path = Path("runs/cache"),
    flips: bool = False,
    progress: bool = True,
) -> JointTrainer:
    """Train a network by one of the methods, to the end or from where a run was stopped; returns the trainer.

    Args:
        method: one of `methods.LEARNED`; all but "supervised" learn without labels.
        images: yields (3, S, S) uint8 tensors, in the order of the start's features (an `ImageStore`).
        seed: of weights, batches and augmentation.
        models: {"trunk", "embedder"} to begin with; None: random weights.
        settings: what else tells runs apart, for the checkpoint.
        resume, output_dir: go on from the checkpoint in that folder, if there is one.
        start_of_round, end_of_round: called with the trainer after each y-step, and after each round.
        cache, flips: folder of cached maps; half of the cached views are of mirrored images.
    """
    if recipe.mirror_images and start.mirrored is not None:
        images, start = WithMirrorImages(images), start.with_mirror_images()
        flips = False  # mirror images are samples of their own
    models = networks.build(recipe.architecture, seed, recipe.dropout) if models is None else models
    if recipe.trunk == "hog":
        hog_trunk.begin(models, images, start.features, device, fit=recipe.ridge)
    parts_of_it, seen, plain = _made_ready(models, images, recipe, device, cache, flips, progress)
    with preserved_randomness():
        seed_everything(derive_seeds(seed)[0])  # a loss may have weights too
        parts = losses.build(method, Plan(start, recipe, parts_of_it, seed))
    joint = JointTrainer(
        models=parts_of_it | parts.networks,
        dataset=seen,
        feature_dataset=plain,
        output_dir=output_dir,
        settings={"method": method, **recipe.settings(), **(settings or {})},
        seed=seed,
        progress=progress,
        dataloader_num_workers=num_workers,
        end_of_iteration_hook=None if log is None else log.record,
        start_of_round_hook=start_of_round,
        end_of_epoch_hook=None if end_of_round is None else lambda trainer: end_of_round(trainer.joint),
        **_trainer_options(recipe, parts, parts_of_it, device),
    )
    begun = output_dir is not None and from_main((output_dir / "checkpoint.pt").is_file)
    joint.train(resume=resume and begun)
    return joint


def _made_ready(
    models: dict[str, nn.Module],
    images: Any,
    recipe: Recipe,
    device: str,
    cache: Path,
    flips: bool,
    progress: bool,
) -> tuple[dict[str, Any], Any, Any]:
    """Networks as they are trained, and what is seen of the images: views to learn from, and plain ones."""
    networks.freeze(models["trunk"], recipe.freeze)
    if not recipe.train_batch_norm:
        freeze_batch_norm(models["trunk"])
    trunk = nn.Sequential(augmentation(recipe), models["trunk"])
    seen = plain = images
    if recipe.cached_maps:
        trunk = CachedTrunk(trunk[0], trunk[1], recipe.cached_maps, recipe.image_size)
        seen = trunk.to(device).maps_of(images, cache, recipe, flips, progress)
        plain = seen.plain
    if recipe.whitening is not None:
        embedding.begin_whitened(
            trunk, models["embedder"], plain, recipe.whitening, device=device, progress=progress
        )
    return {"trunk": trunk.to(device), "embedder": models["embedder"].to(device)}, seen, plain


def _trainer_options(
    recipe: Recipe, parts: losses.Parts, models: Mapping[str, Any], device: str
) -> dict[str, Any]:
    """What a `JointTrainer` gets of the recipe and of the method."""
    loss_funcs = {name: loss.to(device) for name, loss in parts.losses.items()}
    learned = [name for name, loss in loss_funcs.items() if any(p.requires_grad for p in loss.parameters())]
    names, total = (*models, *parts.networks, *learned), recipe.rounds * recipe.iterations
    return {
        "sampler": parts.sampler,
        "feature_fn": parts.feature_fn,
        "feature_options": {"batch_size": 256},
        "loss_funcs": loss_funcs,
        "loss_weights": {name: parts.weights.get(name, 1.0) for name in loss_funcs},
        "mining_funcs": parts.miners,
        "optimizers": {f"{name}_optimizer": optimizer(recipe) for name in names},
        "lr_schedulers": {f"{name}_scheduler_by_iteration": schedule(recipe, total) for name in names},
        "num_rounds": recipe.rounds,
        "iterations_per_round": recipe.iterations,
        "checkpoint_every": max(50, recipe.iterations // 4),
        "record_every": max(1, total // 200),
        "ema_decay": recipe.ema or None,
        "autocast": torch.bfloat16 if recipe.precision == "bfloat16" else None,
    }


def augmentation(recipe: Recipe) -> BatchAugmentation:
    """That of the recipe, which stands in front of the trunk."""
    part = recipe.movement
    return BatchAugmentation(
        scale=recipe.scale,
        rotation=10.0 * part,
        shear=4.0 * part,
        translation=15 / 227 * part,
        brightness=recipe.brightness,
        color=recipe.color,
        gray=recipe.gray,
    )


def optimizer(recipe: Choices) -> Callable[[Any], torch.optim.Optimizer]:
    """Parameters to the optimizer of the recipe."""
    if recipe.optimizer == "adamw":
        return partial(torch.optim.AdamW, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    if recipe.optimizer == "adagrad":
        return partial(torch.optim.Adagrad, lr=recipe.lr, weight_decay=recipe.weight_decay)
    momentum = getattr(recipe, "momentum", 0.9)
    return partial(torch.optim.SGD, lr=recipe.lr, momentum=momentum, weight_decay=recipe.weight_decay)


def schedule(recipe: Choices, total: int) -> Callable[[torch.optim.Optimizer], Any]:
    """An optimizer to the schedule of its learning rate over all iterations."""
    return partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: rate(recipe, step, total))


def rate(recipe: Choices, step: int, total: int) -> float:
    """The learning rate at a step of `total`, as a share of the recipe's."""
    if recipe.schedule == "constant":
        return 1.0
    return min(1.0, (step + 1) / min(20, total)) * 0.5 * (1 + math.cos(math.pi * min(step, total) / total))
