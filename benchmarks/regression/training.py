"""The training of DeepPose: a plain loop over batches, its checkpoints, and prediction."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.regression.model import PoseAugmentation, PoseRegressor, pose_loss
from benchmarks.regression.recipe import PoseRecipe
from pml_posets._random import derive_seeds, preserved_randomness, seed_everything
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.data.datasets import IndexedDataset
from pml_posets.training.checkpoints import check_settings, load_checkpoint, save_checkpoint

_ORDER, _STEP = 1, 2  # what seeds are for
_RECORDS = 200  # losses that are kept of a run


@dataclass
class Training:
    """What came of a training.

    Args:
        iterations, losses: of the curve: (T,) iterations done, and the mean loss since the one before.
        seconds: spent on it, by processes that were killed too.
    """

    iterations: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def fit(
    model: PoseRegressor,
    images: Any,
    joints: npt.NDArray[Any],
    visible: npt.NDArray[np.bool_],
    rows: npt.NDArray[np.int64],
    mirror: Sequence[int],
    recipe: PoseRecipe,
    *,
    seed: int,
    device: str = "cpu",
    num_workers: int = 0,
    checkpoint: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: bool = False,
    name: str = "deeppose",
) -> Training:
    """Train a regressor to its end; a run that was stopped and goes on has the same weights at its end.

    Args:
        model: trained in place; moved to the device.
        images: item i is a (3, S, S) uint8 tensor (an `ImageStore`).
        joints: (N, J, 2) in [0, 1] of the crops.
        visible: (N, J) bool; other joints are masked.
        rows: dataset indices to learn from, at least one.
        mirror: `Skeleton.mirror`.
        recipe: every other choice.
        seed: of order, augmentation and dropout.
        device: to train on.
        num_workers: processes that load images.
        checkpoint: file, written every tenth of the run, whole or not at all; None: none.
        settings: of the run, kept in the checkpoint beside recipe and seed, and compared.
        resume: go on from the checkpoint if there is one.
        progress: show a progress bar.
        name: on that bar.

    Returns:
        `Training`. Torch's global generators stay as they were.

    Raises:
        ValueError: without rows, or for a checkpoint of another run.
        FloatingPointError: if the loss is no number any more.
        OSError: if the checkpoint cannot be written.
    """
    from tqdm import tqdm

    if not len(rows):
        raise ValueError("there is nobody to learn from: rows is empty")
    began = time.perf_counter()
    model.to(device).train()
    optimizer = _optimizer(model, recipe)
    run = _Run(checkpoint, {**(settings or {}), **recipe.settings(), "seed": seed}, model, Training())
    first = run.load(optimizer) if resume else 0
    learned = [value for value in model.trunk.parameters() if value.requires_grad]
    before = run.done.seconds
    normalize = BatchAugmentation().eval().to(device)
    augment = PoseAugmentation(tuple(mirror), recipe.scale, recipe.shift)
    centered = torch.from_numpy(np.nan_to_num(joints).astype(np.float32) - 0.5).to(device)
    seen = torch.from_numpy(visible).to(device)
    order = batches(rows, recipe.batch_size, first, recipe.iterations, seed)
    pinned = device.startswith("cuda")
    loader = DataLoader(
        IndexedDataset(images), batch_sampler=order, num_workers=num_workers, pin_memory=pinned
    )
    record_every = max(1, recipe.iterations // _RECORDS)
    save_every = record_every * max(1, _RECORDS // 10)
    total = torch.zeros((), device=device)
    bar = tqdm(total=recipe.iterations, initial=first, desc=name, unit="it", disable=not progress)
    with bar, preserved_randomness():
        for iteration, (batch, indices) in enumerate(loader, start=first):
            seed_everything(derive_seeds(seed, _STEP, iteration)[0])
            indices = indices.to(device)
            inputs = normalize(batch.to(device, non_blocking=True))
            inputs, targets, shown = augment(inputs, centered[indices], seen[indices])
            for value in learned:
                value.requires_grad_(iteration >= recipe.frozen_iterations)
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * _factor(recipe, iteration)
            with _autocast(recipe, device):
                loss = pose_loss(model(inputs), targets, shown)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
            bar.update()
            finished = iteration + 1
            if finished % record_every == 0 or finished == recipe.iterations:
                run.record(total.item(), finished, name)
                total.zero_()
            if finished % save_every == 0 and finished < recipe.iterations:
                run.done.seconds = before + time.perf_counter() - began
                run.save(optimizer, finished)
    for value in learned:
        value.requires_grad_(True)
    run.done.seconds = before + time.perf_counter() - began
    if first < recipe.iterations:
        run.save(None, recipe.iterations)
    return run.done


def predict(
    model: PoseRegressor,
    images: Any,
    rows: npt.NDArray[np.int64],
    recipe: PoseRecipe,
    *,
    device: str = "cpu",
    batch_size: int = 256,
) -> npt.NDArray[np.float32]:
    """(len(rows), J, 2) joints in [0, 1] of the crops, clipped to them; the model is left in training mode.

    Args:
        model: on the device.
        images: item i is a (3, S, S) uint8 tensor.
        rows: dataset indices.
        recipe: its precision is used.
        device: where the model is.
        batch_size: images at once.
    """
    normalize = BatchAugmentation().eval().to(device)
    model.eval()
    poses = []
    with torch.inference_mode(), _autocast(recipe, device):
        for start in range(0, len(rows), batch_size):
            batch = torch.stack([images[int(i)] for i in rows[start : start + batch_size]])
            poses.append(model(normalize(batch.to(device))).clamp(-0.5, 0.5).cpu() + 0.5)
    model.train()
    return torch.cat(poses).numpy()


def batches(
    rows: npt.NDArray[np.int64], batch_size: int, first: int, last: int, seed: int
) -> Iterator[list[int]]:
    """Dataset indices of iterations `first` to `last` - 1: shuffled passes over the rows, without a gap."""
    count = len(rows)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng(derive_seeds(seed, _ORDER, epoch)).permutation(rows)

    for iteration in range(first, last):
        start, stop = iteration * batch_size, (iteration + 1) * batch_size
        parts = [
            order(epoch)[max(start - epoch * count, 0) : stop - epoch * count]
            for epoch in range(start // count, (stop - 1) // count + 1)
        ]
        yield np.concatenate(parts).tolist()


def _optimizer(model: nn.Module, recipe: PoseRecipe) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), fused=True, **options)
    if recipe.optimizer == "adagrad":
        return torch.optim.Adagrad(model.parameters(), **options)
    return torch.optim.SGD(model.parameters(), momentum=0.9, **options)


def _factor(recipe: PoseRecipe, iteration: int) -> float:
    """The learning rate at an iteration, relative to its largest."""
    if recipe.schedule == "constant":
        return 1.0
    rising = min(1.0, (iteration + 1) / min(20, recipe.iterations))
    return rising * 0.5 * (1 + math.cos(math.pi * iteration / recipe.iterations))


def _autocast(recipe: PoseRecipe, device: str) -> torch.autocast:
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=recipe.precision == "bfloat16")


@dataclass
class _Run:
    """The state of a training that its checkpoint keeps."""

    path: Path | None
    settings: dict[str, Any]
    model: nn.Module
    done: Training

    def record(self, total: float, iteration: int, name: str) -> None:
        """Add to the curve the mean loss since the last record."""
        loss = total / (iteration - (self.done.iterations[-1] if self.done.iterations else 0))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss of {name} is {loss} at iteration {iteration}: lower --lr, or use float32"
            )
        self.done.losses.append(loss)
        self.done.iterations.append(iteration)

    def save(self, optimizer: torch.optim.Optimizer | None, iteration: int) -> None:
        """Write the checkpoint."""
        if self.path is None:
            return
        content = {
            "settings": self.settings,
            "iteration": iteration,
            "model": self.model.state_dict(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "curve": [self.done.iterations, self.done.losses],
            "seconds": self.done.seconds,
        }
        save_checkpoint(self.path, content)

    def load(self, optimizer: torch.optim.Optimizer) -> int:
        """Restore the run from its checkpoint, if there is one; returns how many iterations it has done."""
        if self.path is None or not self.path.exists():
            return 0
        content = load_checkpoint(self.path)
        try:
            check_settings(content["settings"], self.settings, self.path)
            self.model.load_state_dict(content["model"])
            if content["optimizer"] is not None:
                optimizer.load_state_dict(content["optimizer"])
            iterations, losses = content["curve"]
            self.done = Training(iterations, losses, content["seconds"])
            return int(content["iteration"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"the checkpoint {self.path} does not fit this run ({error}): use its settings, or another "
                "--output"
            ) from error
