"""The training runs of the benchmarks: one recipe, several methods, the same budget for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.core import trunks
from benchmarks.core.logs import RunLog
from benchmarks.core.methods import METHODS, Plan
from benchmarks.core.recipes import Recipe
from pml_posets._random import derive_seeds, preserved_randomness, seed_everything
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.data.datasets import WithMirrorImages
from pml_posets.training.joint import JointTrainer


@dataclass
class Start:
    """What training starts from.

    Args:
        features: (N, D) float32, unit rows: the first similarities (HOG-LDA).
        mirrored: (N, D) float32, those of the mirrored images; None: mirror images are not looked at.
        sources: (N,) source of each sample; None: each its own.
        labels: (N,) true classes from 0, which the method supervised alone looks at; None: not known.
        num_clusters: K of k-means where the recipe leaves it open. Default 100, published for CUB and Cars.
    """

    features: np.ndarray
    mirrored: np.ndarray | None = None
    sources: np.ndarray | None = None
    labels: np.ndarray | None = None
    num_clusters: int = 100

    def with_mirror_images(self) -> Start:
        """The same with every mirror image as a sample of its own, behind the others."""
        sources = np.arange(len(self.features)) if self.sources is None else self.sources
        mirrored = [] if self.mirrored is None else [self.mirrored]
        times = 1 + len(mirrored)
        return Start(
            np.concatenate([self.features, *mirrored]),
            None,
            np.tile(sources, times),
            None if self.labels is None else np.tile(self.labels, times),
            self.num_clusters,
        )


def train(
    method: str,
    images: Any,
    start: Start,
    recipe: Recipe,
    *,
    seed: int,
    device: str = "cpu",
    num_workers: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    models: dict[str, nn.Module] | None = None,
    end_of_round: Callable[[JointTrainer], Any] | None = None,
    log: RunLog | None = None,
    settings: Mapping[str, Any] | None = None,
) -> JointTrainer:
    """Train a network by one of the methods, to the end or from where a run was stopped.

    All methods see the same images, first similarities, augmentation, optimizer and number of iterations.

    Args:
        method: one of `methods.METHODS`; all but "supervised" learn without labels.
        images: yields (3, S, S) uint8 tensors, in the order of the start's features (an `ImageStore`).
        start: first similarities.
        recipe: every other choice.
        seed: of weights, batches and augmentation.
        device: to train on.
        num_workers: processes that load images.
        output_dir: folder of the checkpoint; None: none.
        resume: go on from the checkpoint there, if there is one.
        progress: show progress bars.
        models: {"trunk", "embedder"} to begin with; None: random weights.
        end_of_round: called with the trainer after each round.
        log: of the run; None: none.
        settings: what else tells runs apart (the data, the first similarities), for the checkpoint.

    Returns:
        The trainer at its end; `evaluation_models` are the networks, `history` the losses.

    Raises:
        ValueError: for an unknown method; errors of `JointTrainer` otherwise.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if recipe.mirror_images and start.mirrored is not None:
        images, start = WithMirrorImages(images), start.with_mirror_images()
    models = trunks.build(recipe.architecture, seed, recipe.dropout) if models is None else models
    models = {"trunk": nn.Sequential(augmentation(recipe), models["trunk"]), "embedder": models["embedder"]}
    networks: dict[str, Any] = {name: model.to(device) for name, model in models.items()}
    with preserved_randomness():
        seed_everything(derive_seeds(seed)[0])  # a loss may have weights too
        parts = METHODS[method](Plan(start, recipe, networks, seed))
    networks |= parts.networks
    losses = {name: loss.to(device) for name, loss in parts.losses.items()}
    total = recipe.rounds * recipe.iterations
    learned = [name for name, loss in losses.items() if any(p.requires_grad for p in loss.parameters())]
    names = [*networks, *learned]
    joint = JointTrainer(
        models=networks,
        optimizers={f"{name}_optimizer": optimizer(recipe) for name in names},
        lr_schedulers={f"{name}_scheduler_by_iteration": schedule(recipe, total) for name in names},
        sampler=parts.sampler,
        loss_funcs=losses,
        loss_weights={name: parts.weights.get(name, 1.0) for name in losses},
        mining_funcs=parts.miners,
        dataset=images,
        num_rounds=recipe.rounds,
        iterations_per_round=recipe.iterations,
        feature_fn=parts.feature_fn,
        feature_options={"batch_size": 256},
        output_dir=output_dir,
        checkpoint_every=max(50, recipe.iterations // 4),
        settings={"method": method, **recipe.settings(), **(settings or {})},
        seed=seed,
        ema_decay=recipe.ema or None,
        autocast=torch.bfloat16 if recipe.precision == "bfloat16" else None,
        record_every=max(1, total // 200),
        progress=progress,
        dataloader_num_workers=num_workers,
        end_of_iteration_hook=None if log is None else log.record,
        end_of_epoch_hook=None if end_of_round is None else lambda trainer: end_of_round(trainer.joint),
    )
    joint.train(resume=resume)
    return joint


def augmentation(recipe: Recipe) -> BatchAugmentation:
    """That of the recipe, which stands in front of the trunk."""
    return BatchAugmentation(
        scale=recipe.scale, brightness=recipe.brightness, color=recipe.colour, gray=recipe.grey
    )


def optimizer(recipe: Recipe) -> Callable[[Any], torch.optim.Optimizer]:
    """Parameters to the optimizer of the recipe."""
    if recipe.optimizer == "adamw":
        return lambda parameters: torch.optim.AdamW(
            parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )
    return lambda parameters: torch.optim.SGD(
        parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def schedule(recipe: Recipe, total: int) -> Callable[[torch.optim.Optimizer], Any]:
    """An optimizer to the schedule of its learning rate over so many iterations."""
    warm_up = min(20, total)

    def factor(step: int) -> float:
        if recipe.schedule == "constant":
            return 1.0
        return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(step, total) / total))

    return lambda given: torch.optim.lr_scheduler.LambdaLR(given, factor)
