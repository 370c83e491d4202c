"""The training of DeepPose: a plain loop over batches, its checkpoints, and prediction."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from benchmarks.core.learning import optimizer, rate
from benchmarks.data.people import PoseData
from benchmarks.regression.model import PoseAugmentation, PoseRegressor, pose_loss
from benchmarks.regression.recipe import PoseRecipe
from pml_posets._random import derive_seeds, preserved_randomness, seed_everything
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.data.datasets import IndexedDataset
from pml_posets.features.network import extract
from pml_posets.training.checkpoints import check_settings, load_checkpoint, save_checkpoint

_ORDER, _STEP = 1, 2  # what seeds are for
_RECORDS = 200  # losses that are kept of a run


class Training:
    """A training on its way or at its end, with all that its checkpoint keeps.

    Args:
        model, recipe: what learns, and how.
        settings: of the run, kept in the checkpoint and compared.
        path: of the checkpoint; None: none is written.

    Attributes:
        iterations, losses: the curve: iterations, and the mean loss up to each.
        seconds: in all, up to the last checkpoint.
    """

    def __init__(
        self, model: PoseRegressor, recipe: PoseRecipe, settings: dict[str, Any], path: Path | None
    ) -> None:
        self.model, self.recipe, self.settings, self.path = model, recipe, settings, path
        self.optimizer = optimizer(recipe)(model.parameters())
        self.iterations: list[int] = []
        self.losses: list[float] = []
        self.seconds = 0.0
        self._began = time.perf_counter()
        self._total = torch.zeros((), device=model.head.weight.device)
        self._record_every = max(1, recipe.iterations // _RECORDS)
        self._save_every = self._record_every * max(1, _RECORDS // 10)

    def step(self, loss: torch.Tensor, iteration: int, name: str) -> None:
        """Learn from the loss of an iteration; record and save where it is time to."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * rate(self.recipe, iteration, self.recipe.iterations)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._total += loss.detach()
        finished, last = iteration + 1, self.recipe.iterations
        if finished % self._record_every == 0 or finished == last:
            mean = self._total.item() / (finished - (self.iterations or [0])[-1])
            if not math.isfinite(mean):
                raise FloatingPointError(
                    f"the loss of {name} is {mean} at iteration {finished}: lower --lr, or use float32"
                )
            self.losses.append(mean)
            self.iterations.append(finished)
            self._total.zero_()
        if finished % self._save_every == 0 or finished == last:
            self.save(finished)

    def save(self, iteration: int) -> None:
        """Write the checkpoint."""
        self.seconds = time.perf_counter() - self._began
        if self.path is None:
            return
        content = {
            "settings": self.settings,
            "iteration": iteration,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict() if iteration < self.recipe.iterations else None,
            "curve": [self.iterations, self.losses],
            "seconds": self.seconds,
        }
        save_checkpoint(self.path, content)

    def load(self) -> int:
        """Restore the run from its checkpoint, if there is one; returns how many iterations it has done."""
        if self.path is None or not self.path.exists():
            return 0
        content = load_checkpoint(self.path)
        try:
            check_settings(content["settings"], self.settings, self.path)
            self.model.load_state_dict(content["model"])
            if content["optimizer"] is not None:
                self.optimizer.load_state_dict(content["optimizer"])
            self.iterations, self.losses = content["curve"]
            self.seconds = content["seconds"]
            self._began -= self.seconds
            return int(content["iteration"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"the checkpoint {self.path} does not fit this run ({error}): use its settings, or another "
                "--output"
            ) from error


def fit(
    model: PoseRegressor,
    images: Any,
    people: PoseData,
    rows: npt.NDArray[np.int64],
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
    """Train a regressor, in place, to its end; a run that was stopped and goes on has the same weights there.

    Args:
        model: moved to the device.
        images: item i is a (3, S, S) uint8 tensor (an `ImageStore`).
        people: whose joints are learned, the visible ones; their own images are not used.
        rows: dataset indices to learn from, at least one.
        recipe, seed: the seed is of order, augmentation and dropout.
        device, num_workers: where to train; processes that load images.
        checkpoint: file, written every tenth of the run, whole or not at all; None: none.
        settings: of the run, kept in the checkpoint beside recipe and seed, and compared.
        resume: go on from the checkpoint if there is one.
        progress, name: show a progress bar of this name.

    Raises:
        ValueError: without rows, or for a checkpoint of another run.
        FloatingPointError: if the loss is no number any more.
        OSError: if the checkpoint cannot be written.
    """
    if not len(rows):
        raise ValueError("there is nobody to learn from: rows is empty")
    model.to(device).train()
    run = Training(model, recipe, {**(settings or {}), **recipe.settings(), "seed": seed}, checkpoint)
    first = run.load() if resume else 0
    order = batches(rows, recipe.batch_size, first, recipe.iterations, seed)
    how: dict[str, Any] = {"num_workers": num_workers, "pin_memory": device.startswith("cuda")}
    loader = DataLoader(IndexedDataset(images), batch_sampler=order, **how)
    loss_of = _loss_of(model, people, recipe, device)
    learned = [value for value in model.trunk.parameters() if value.requires_grad]
    bar = tqdm(total=recipe.iterations, initial=first, desc=name, unit="it", disable=not progress)
    with bar, preserved_randomness():
        for iteration, (batch, indices) in enumerate(loader, start=first):
            seed_everything(derive_seeds(seed, _STEP, iteration)[0])
            for value in learned:
                value.requires_grad_(iteration >= recipe.frozen_iterations)
            run.step(loss_of(batch, indices), iteration, name)
            bar.update()
    for value in learned:
        value.requires_grad_(True)
    return run


def _loss_of(
    model: nn.Module, people: PoseData, recipe: PoseRecipe, device: str
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(B, 3, S, S) images and (B,) dataset indices to the loss, augmented."""
    normalize = BatchAugmentation().eval().to(device)
    augment = PoseAugmentation(people.skeleton.mirror, recipe.scale, recipe.shift)
    centered = torch.from_numpy(np.nan_to_num(people.joints).astype(np.float32) - 0.5).to(device)
    seen = torch.from_numpy(people.visible).to(device)

    def loss(batch: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        indices = indices.to(device)
        inputs = normalize(batch.to(device, non_blocking=True))
        inputs, targets, shown = augment(inputs, centered[indices], seen[indices])
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            return pose_loss(model(inputs), targets, shown)

    return loss


def predict(
    model: PoseRegressor,
    images: Any,
    rows: npt.NDArray[np.int64],
    recipe: PoseRecipe,
    *,
    device: str = "cpu",
    batch_size: int = 256,
) -> npt.NDArray[np.float32]:
    """(len(rows), J, 2) joints in [0, 1] of the crops, clipped to them; the model then trains on."""
    network = nn.Sequential(BatchAugmentation(), model)
    amp = torch.bfloat16 if recipe.precision == "bfloat16" else False
    how: dict[str, Any] = {"batch_size": batch_size, "device": device, "amp": amp, "progress": False}
    poses = extract(network, Subset(images, rows.tolist()), normalize=False, **how)  # (len(rows), 2J)
    return poses.reshape(len(rows), -1, 2).clip(-0.5, 0.5) + 0.5


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
