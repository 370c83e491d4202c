"""DeepPose, stage 1: an AlexNet that tells where joints are, its augmentation, its training."""

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
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from pml_posets.augmentation import BatchAugmentation
from pml_posets.checkpoints import check_settings, load_checkpoint, save_checkpoint
from pml_posets.datasets import IndexedDataset
from pml_posets.seeding import derive_seeds, preserved_randomness, seed_everything

from . import alexnet

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
        precision: "float32", or "bfloat16" (mixed).

    Raises:
        ValueError: for a value out of its range; the message names the option of the command line.

    Source: section 4.1.2. The authors' public code has 1,000,000 iterations, batches of 128, Adagrad at 5e-4,
        dropout 0.6, mirror images, shifts of 0.1; convolutions frozen for 10,000 iterations where they come
        from ImageNet.
    Differs from the paper: its code enlarges the joints' box by 1.5 to 2, each side on its own; here a crop
        of 1.3 is magnified as a whole. The presets but "paper" are ours.
    """

    iterations: int = 3000
    batch_size: int = 128
    lr: float = 1e-3
    optimizer: Literal["adamw", "adagrad", "sgd"] = "adamw"
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 1e-4
    dropout: float = 0.2
    freeze: int = 0
    scale: tuple[float, float] = (0.8, 1.1)
    shift: float = 0.05
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


class PoseRegressor(nn.Module):
    """AlexNet with one more layer, which tells the joints: x_j = W relu(fc7) + b in R^2 for each joint j.

    Joints are person-centric: shares of the person's crop about its middle, x and y in [-0.5, 0.5] inside.

    Args:
        models: {"trunk", "embedder"} of `alexnet.build`.
        num_joints: J.
        seed: of the last layer's weights, normal with deviation 0.01; its biases are 0.

    Shapes: (B, 3, S, S) normalised images -> (B, J, 2) float32, not clipped.

    Source: DeepPose, stage 1 (Toshev and Szegedy, CVPR 2014), as section 4.1.2 of the posets paper uses it.
    Differs from the paper: see `alexnet`; the deviation is that of the authors' public code.
    """

    def __init__(self, models: Mapping[str, nn.Module], num_joints: int, seed: int) -> None:
        super().__init__()
        self.trunk, self.embedder = models["trunk"], models["embedder"]
        width = self.embedder.get_submodule("fc7.1").out_features
        with preserved_randomness(accelerators=False):
            seed_everything(seed, accelerators=False)
            self.head = nn.Linear(int(width), 2 * num_joints)
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) -> (B, J, 2)."""
        features = self.embedder(self.trunk(images)).relu()
        with torch.autocast(features.device.type, enabled=False):  # places need more than eight bits
            return self.head(features.float()).unflatten(1, (-1, 2))


@dataclass(frozen=True)
class PoseAugmentation:
    """Mirrors, magnifies and shifts the images of a batch, each at random, and their joints with them.

    A joint u about the image's middle, in [-0.5, 0.5], goes to z F u + t: F mirrors x in half of the images
    (left and right joints then change places), z is drawn from `scale` and t from `shift`. What comes in from
    outside is 0, the mean colour. Joints that leave the image count as missing.

    Args:
        mirror: J indices, `Skeleton.mirror`.
        scale: range of z, both above 0. Default (0.8, 1.1).
        shift: largest |t| in x and y, as a share of the image. Default 0.05.
        flip: part of the images that are mirrored. Default 0.5.

    Randomness comes from torch's global generator of the CPU, whatever the device.

    Source: DeepPose mirrors and shifts; so does the posets authors' public code, which also scales.
    Differs from the paper: its ranges are not told; those of the code are in `PoseRecipe`.

    Example:
        >>> augment = PoseAugmentation((1, 0), scale=(1.0, 1.0), shift=0.0, flip=1.0)
        >>> joints = torch.tensor([[[-0.25, 0.0], [0.5, 0.125]]])
        >>> images, moved, seen = augment(torch.zeros(1, 3, 8, 8), joints, torch.ones(1, 2, dtype=torch.bool))
        >>> moved.tolist()
        [[[-0.5, 0.125], [0.25, 0.0]]]
    """

    mirror: tuple[int, ...]
    scale: tuple[float, float] = (0.8, 1.1)
    shift: float = 0.05
    flip: float = 0.5

    def __call__(
        self, images: torch.Tensor, joints: torch.Tensor, visible: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The moved batch.

        Args:
            images: (B, 3, S, S) floating point, normalised.
            joints: (B, J, 2) about the middle; anything finite where not visible.
            visible: (B, J) bool.

        Returns:
            The same three, moved.
        """
        count, device = len(images), images.device
        flipped = torch.rand(count) < self.flip
        zoom = torch.empty(count).uniform_(*self.scale)
        shift = torch.empty(count, 2).uniform_(-self.shift, self.shift)
        sign = torch.where(flipped, -1.0, 1.0)
        # The grid asks where a pixel of the result comes from; it runs from -1 to 1 where joints run from
        # -0.5 to 0.5.
        back = torch.zeros(count, 2, 3)
        back[:, 0, 0], back[:, 1, 1] = sign / zoom, 1 / zoom
        back[:, 0, 2], back[:, 1, 2] = -2 * shift[:, 0] * sign / zoom, -2 * shift[:, 1] / zoom
        grid = F.affine_grid(back.to(device), list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, align_corners=False)
        swapped, factor = flipped.to(device), torch.stack([sign * zoom, zoom], 1).to(device)
        order = list(self.mirror)
        joints = torch.where(swapped[:, None, None], joints[:, order], joints)
        visible = torch.where(swapped[:, None], visible[:, order], visible)
        joints = joints * factor[:, None] + shift.to(device)[:, None]  # (B, J, 2)
        return images, joints, visible & (joints.abs() <= 0.5).all(dim=2)


def pose_loss(predicted: torch.Tensor, joints: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of joints: L = mean_i 1/|V_i| sum_{j in V_i} |x_ij - y_ij|^2.

    V_i are the visible joints of person i; people without any are left out of the mean.

    Args:
        predicted: (B, J, 2) x.
        joints: (B, J, 2) y; anything finite where not visible.
        visible: (B, J) bool.

    Returns:
        The loss, 0 with a gradient of 0 if nobody has a visible joint.

    Source: section 4.1.2 (DeepPose's L2 loss); the means are those of the authors' public code.
    Differs from the paper: in nothing known.

    Example:
        >>> joints = torch.zeros(1, 2, 2)
        >>> seen = torch.tensor([[True, False]])
        >>> pose_loss(torch.tensor([[[3.0, 4.0], [9.0, 9.0]]]), joints, seen).item()
        25.0
    """
    squared = (predicted - joints).square().sum(dim=2).masked_fill(~visible, 0)  # (B, J)
    seen = visible.sum(dim=1)
    return (squared.sum(dim=1) / seen.clamp(min=1)).sum() / (seen > 0).sum().clamp(min=1)


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
        batch_sampler=list(batches(rows, recipe.batch_size, first, recipe.iterations, seed)),
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
