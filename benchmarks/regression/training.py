"""The training of DeepPose: its recipe, its steps, its checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.regression.model import PoseAugmentation, PoseRegressor, pose_loss
from pml_posets._random import derive_seeds, preserved_randomness, seed_everything
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.data.datasets import IndexedDataset
from pml_posets.training.checkpoints import check_settings, load_checkpoint, save_checkpoint

_ORDER, _STEP = 1, 2  # what seeds are for
_RECORDS = 200  # losses that are kept of a run


@dataclass(frozen=True)
class PoseRecipe:
    """Every choice of a training that a result depends on, beside the network's shapes and its first weights.

    Args:
        iterations: steps.
        batch_size: people in a batch, at least 2.
        lr: learning rate of all layers, above 0.
        optimizer: "adamw", "adagrad" or "sgd" (with momentum 0.9).
        schedule: of the learning rate: "constant", or "cosine" with a short warm-up.
        weight_decay: from 0.
        dropout: before fc6 and fc7, in 0..1 without 1.
        freeze: iterations at the beginning in which the convolutions stay as they are.
        scale: range of the magnification of a person, both above 0.
        shift: largest shift of a person to any side, as a share of the image, in 0..1.
        mean_pose: begin from the mean of the labelled poses and their mirror images, not from the middle.
        precision: "float32", or "bfloat16" (mixed).

    Raises:
        ValueError: for a value out of its range; the message names the option of the command line.

    Source: section 4.1.2. The authors' public code has 1,000,000 iterations, batches of 128, Adagrad at 5e-4,
        dropout 0.6, mirror images, shifts of 0.1; convolutions frozen for 10,000 iterations where they come
        from ImageNet.
    Differs from the paper: its code enlarges the joints' box by 1.5 to 2, each side on its own; here a crop
        of 1.3 is magnified as a whole. The presets but "paper" are ours, and so is the mean pose.
    """

    iterations: int = 1000
    batch_size: int = 128
    lr: float = 1e-3
    optimizer: Literal["adamw", "adagrad", "sgd"] = "adamw"
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 1e-4
    dropout: float = 0.2
    freeze: int = 0
    scale: tuple[float, float] = (0.8, 1.1)
    shift: float = 0.05
    mean_pose: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                bound = f"at least {least:g}" if value < least or most == math.inf else f"at most {most:g}"
                raise ValueError(f"--{name.replace('_', '-')} must be {bound}, got {value}")
        if self.lr == 0:
            raise ValueError("--lr must be above 0, got 0")
        if self.dropout == 1:
            raise ValueError("--dropout must be below 1, got 1")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"--scale must be two numbers above 0, LOW and HIGH, got {self.scale}")

    def settings(self) -> dict[str, Any]:
        """Every value, as plain ones, for results and checkpoints."""
        return {**asdict(self), "scale": list(self.scale)}


_RANGES: dict[str, tuple[float, float]] = {
    "iterations": (1, math.inf),
    "batch_size": (2, math.inf),
    "lr": (0, 1e6),
    "weight_decay": (0, 1e6),
    "dropout": (0, 1),
    "freeze": (0, math.inf),
    "shift": (0, 1),
}


@dataclass
class Training:
    """What came of a training.

    Args:
        iterations, losses: of the curve: (T,) iterations done, and the mean loss since the one before.
        seconds: spent on it, by processes that were killed too.
    """

    iterations: list[int]
    losses: list[float]
    seconds: float


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
    """Train a regressor to its end, or from where a run was stopped: the weights are then the same.

    Args:
        model: trained in place; moved to the device.
        images: item i is a (3, S, S) uint8 tensor (an `ImageStore`).
        joints: (N, J, 2) in [0, 1] of the crops.
        visible: (N, J) bool; other joints are masked.
        rows: dataset indices to learn from, at least one; passes over them follow each other without a gap,
            each in an order of its own.
        mirror: `Skeleton.mirror`.
        recipe: every other choice.
        seed: of order, augmentation and dropout.
        device: to train on.
        num_workers: processes that load images.
        checkpoint: file, written every tenth of the run, whole or not at all; None: none.
        settings: what tells runs apart, kept in the checkpoint.
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
    done = Training([], [], 0.0)
    first = 0
    settings = {**(settings or {}), **recipe.settings(), "seed": seed}
    if resume and checkpoint is not None and checkpoint.exists():
        first = _load(checkpoint, settings, model, optimizer, done)
    normalise = BatchAugmentation().eval().to(device)
    augment = PoseAugmentation(tuple(mirror), recipe.scale, recipe.shift)
    places = torch.from_numpy(np.nan_to_num(joints).astype(np.float32) - 0.5).to(device)
    seen = torch.from_numpy(visible).to(device)
    loader = DataLoader(
        IndexedDataset(images),
        batch_sampler=batches(rows, recipe.batch_size, first, recipe.iterations, seed),
        num_workers=num_workers,
        pin_memory=device.startswith("cuda"),
    )
    record_every = max(1, recipe.iterations // _RECORDS)
    save_every = record_every * max(1, _RECORDS // 10)
    total = torch.zeros((), device=device)
    bar = tqdm(total=recipe.iterations, initial=first, desc=name, unit="it", disable=not progress)
    with bar, preserved_randomness():
        for iteration, (batch, indices) in enumerate(loader, start=first):
            seed_everything(derive_seeds(seed, _STEP, iteration)[0])
            indices = indices.to(device)
            inputs = normalise(batch.to(device, non_blocking=True))
            inputs, targets, shown = augment(inputs, places[indices], seen[indices])
            model.trunk.requires_grad_(iteration >= recipe.freeze)
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * _factor(recipe, iteration)
            with _autocast(recipe, device):
                loss = pose_loss(model(inputs), targets, shown)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
            bar.update()
            if (iteration + 1) % record_every == 0 or iteration + 1 == recipe.iterations:
                past = iteration + 1 - (done.iterations[-1] if done.iterations else 0)
                done.losses.append(_finite(total.item() / past, iteration, name))
                done.iterations.append(iteration + 1)
                total.zero_()
            if (iteration + 1) % save_every == 0 and iteration + 1 < recipe.iterations:
                spent = done.seconds + time.perf_counter() - began
                _save(checkpoint, settings, model, optimizer, done, iteration + 1, spent)
    model.trunk.requires_grad_(True)
    done.seconds += time.perf_counter() - began
    if first < recipe.iterations:
        _save(checkpoint, settings, model, None, done, recipe.iterations, done.seconds)
    return done


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
    normalise = BatchAugmentation().eval().to(device)
    model.eval()
    found = []
    with torch.inference_mode(), _autocast(recipe, device):
        for start in range(0, len(rows), batch_size):
            batch = torch.stack([images[int(i)] for i in rows[start : start + batch_size]])
            found.append(model(normalise(batch.to(device))).clamp(-0.5, 0.5).cpu() + 0.5)
    model.train()
    return torch.cat(found).numpy()


def batches(
    rows: npt.NDArray[np.int64], batch_size: int, first: int, last: int, seed: int
) -> Iterator[list[int]]:
    """The dataset indices of iterations `first` to `last` - 1: passes over the rows, without a gap.

    Args:
        rows: what to draw from.
        batch_size: of each batch; it may exceed the rows.
        first, last: iterations.
        seed: of the order of each pass.
    """
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
    warm_up = min(20, recipe.iterations)
    rising = min(1.0, (iteration + 1) / warm_up)
    return rising * 0.5 * (1 + math.cos(math.pi * iteration / recipe.iterations))


def _autocast(recipe: PoseRecipe, device: str) -> torch.autocast:
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=recipe.precision == "bfloat16")


def _finite(loss: float, iteration: int, name: str) -> float:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss of {name} is {loss} at iteration {iteration + 1}: lower --lr, or use float32"
        )
    return loss


def _save(
    path: Path | None,
    settings: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    done: Training,
    iteration: int,
    seconds: float,
) -> None:
    if path is None:
        return
    content = {
        "settings": dict(settings),
        "iteration": iteration,
        "model": model.state_dict(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "curve": [done.iterations, done.losses],
        "seconds": seconds,
    }
    save_checkpoint(path, content)


def _load(
    path: Path,
    settings: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    done: Training,
) -> int:
    """Take a run back; returns how many iterations it has done."""
    content = load_checkpoint(path)
    try:
        check_settings(content["settings"], settings, path)
        model.load_state_dict(content["model"])
        if content["optimizer"] is not None:
            optimizer.load_state_dict(content["optimizer"])
        done.iterations, done.losses = content["curve"]
        done.seconds = content["seconds"]
        return int(content["iteration"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"the checkpoint {path} does not fit this run ({error}): use its settings, or another --output"
        ) from error
