"""A training step in the rounds against a bare loop, and from an image store against tensors."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import resnet18
from tqdm.auto import tqdm

from benchmarks.core import networks
from benchmarks.core.architectures import AlexNetConfig
from benchmarks.core.learning import augmentation
from benchmarks.core.recipes import SMALL
from benchmarks.timing.clock import peak_bytes
from pml_posets import ImageStore, JointTrainer, NearestMedoidMiner, PosetLoss, PseudoLabelSampler
from pml_posets.data.datasets import ImageList, IndexedDataset
from pml_posets.samplers.pseudo_label import GivenLabels

_NUM_IMAGES = 512

Seconds = list[list[float]]  # of the wall and of the process, a row a step


@dataclass(frozen=True)
class Shape:
    """Sizes of a training; `num_steps` are timed after a first one."""

    image_size: int
    batch_size: int
    num_steps: int
    workers: int
    seed: int
    device: str
    network: str = "alexnet"
    bfloat16: bool = False
    channels_last: bool = False


def images_of(size: int, seed: int) -> np.ndarray:
    """(512, S, S, 3) uint8, coarse patterns enlarged: they cost a decoder what photographs do, about."""
    coarse = np.random.default_rng(seed).integers(0, 256, (_NUM_IMAGES, 3, 16, 16))
    rows = nn.functional.interpolate(
        torch.from_numpy(coarse.astype(np.float32)), size=(size, size), mode="bilinear"
    )
    return rows.byte().permute(0, 2, 3, 1).numpy()


def _parts(shape: Shape) -> dict[str, nn.Module]:
    if shape.network == "resnet18":
        torch.manual_seed(shape.seed)
        network: nn.Module = resnet18()
        network.fc = nn.Identity()
        embedder: nn.Module = nn.Linear(512, 128)
    else:
        config = AlexNetConfig(image_size=shape.image_size, batch_norm=True, fc_dim=1024)
        models = networks.build(config, shape.seed, dropout=0.0)
        network, embedder = models["trunk"], models["embedder"]
    if shape.channels_last:
        network = network.to(memory_format=torch.channels_last)
    trunk = nn.Sequential(augmentation(SMALL), network)
    return {"trunk": trunk.to(shape.device), "embedder": embedder.to(shape.device)}


def _optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


def _sampler(shape: Shape) -> PseudoLabelSampler:
    features = np.random.default_rng(shape.seed).normal(size=(_NUM_IMAGES, 16)).astype(np.float32)
    labels = np.where(np.arange(_NUM_IMAGES) % 2, np.arange(_NUM_IMAGES) // 8, -1)
    return PseudoLabelSampler(
        features,
        batch_size=shape.batch_size,
        grouping=GivenLabels(labels),
        num_batches=shape.num_steps + 1,
        seed=shape.seed,
    )


def rounds(images: Any, shape: Shape) -> Seconds:
    """Seconds of each step of a JointTrainer, the first left out."""
    clock: Seconds = []
    models = _parts(shape)
    JointTrainer(
        models=models,
        optimizers={f"{name}_optimizer": _optimizer for name in models},
        sampler=_sampler(shape),
        loss_funcs={"metric_loss": PosetLoss(sigma=0.35)},
        mining_funcs={"tuple_miner": NearestMedoidMiner()},
        dataset=images,
        num_rounds=1,
        seed=shape.seed,
        progress=False,
        autocast=torch.bfloat16 if shape.bfloat16 else None,
        dataloader_num_workers=shape.workers,
        end_of_iteration_hook=lambda trainer: clock.append(_now(shape.device)),
    ).train()
    return np.diff(clock, axis=0).tolist()


def bare(images: Any, shape: Shape) -> Seconds:
    """Seconds of each step of a plain loop with the same network, batches, augmentation and loss."""
    models = _parts(shape)
    network = nn.Sequential(*models.values()).train()
    optimizers = [_optimizer(model.parameters()) for model in models.values()]
    sampler = _sampler(shape)
    miner, loss = NearestMedoidMiner(), PosetLoss(sigma=0.35)
    miner.bind(sampler.posets)
    labels = torch.from_numpy(sampler.posets.labels).to(shape.device)
    loader = DataLoader(IndexedDataset(images), batch_sampler=sampler, num_workers=shape.workers)
    clock: Seconds = []
    for batch, index in loader:
        index = index.to(shape.device)
        with torch.autocast(torch.device(shape.device).type, torch.bfloat16, enabled=shape.bfloat16):
            embeddings = network(batch.to(shape.device))
            value = loss(embeddings, labels[index], miner(embeddings, index))
        for optimizer in optimizers:
            optimizer.zero_grad()
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
        _ = value.item()  # a loop that shows its loss
        clock.append(_now(shape.device))
    return np.diff(clock, axis=0).tolist()


def _now(device: str) -> list[float]:
    """Seconds of the wall, and of this process."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return [time.perf_counter(), time.process_time()]


def _alternate(
    things: dict[str, Callable[[], Seconds]], repeats: int, title: str, quiet: bool
) -> dict[str, tuple[float, float]]:
    """Median seconds of a step, of the wall and of the process, of all repeats, in turns A B A B."""
    found: dict[str, Seconds] = {name: [] for name in things}
    with tqdm(total=len(things) * repeats, desc=title, disable=quiet) as bar:
        for _ in range(repeats):
            for name, thing in things.items():
                found[name] += thing()
                bar.update()
    medians = {name: np.median(steps, axis=0) for name, steps in found.items()}
    return {name: (float(wall), float(cpu)) for name, (wall, cpu) in medians.items()}


def time_training(shape: Shape, repeats: int, quiet: bool) -> dict[str, float]:
    """Images a second in rounds over those of a bare loop; to be called in a process of its own."""
    images = torch.from_numpy(images_of(shape.image_size, shape.seed).transpose(0, 3, 1, 2).copy())
    things = {"rounds": lambda: rounds(images, shape), "bare": lambda: bare(images, shape)}
    seconds = _alternate(things, repeats, f"training, {shape.workers} workers", quiet)
    return {
        "rounds_images_per_second": shape.batch_size / seconds["rounds"][0],
        "bare_images_per_second": shape.batch_size / seconds["bare"][0],
        "of_bare": seconds["bare"][0] / seconds["rounds"][0],
        "of_bare_cpu": seconds["bare"][1] / seconds["rounds"][1],
        "peak_gib": peak_bytes() / 2**30,
    }


def time_feeding(shape: Shape, repeats: int, quiet: bool) -> dict[str, float]:
    """Images a second from a store of real files over those from tensors; in a process of its own."""
    from PIL import Image

    pixels = images_of(shape.image_size, shape.seed)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(len(pixels))]
        for path, one in zip(paths, pixels, strict=True):
            Image.fromarray(one).save(path)
        start = time.perf_counter()
        store = ImageStore(ImageList(paths), Path(folder) / "store", size=shape.image_size, progress=False)
        decode = time.perf_counter() - start
        tensors = torch.stack([store[number] for number in range(len(store))])
        things = {"store": lambda: rounds(store, shape), "tensors": lambda: rounds(tensors, shape)}
        seconds = _alternate(things, repeats, "feeding", quiet)
    return {
        "store_images_per_second": shape.batch_size / seconds["store"][0],
        "tensors_images_per_second": shape.batch_size / seconds["tensors"][0],
        "of_tensors": seconds["tensors"][0] / seconds["store"][0],
        "decoded_once_per_second": len(pixels) / decode,
        "peak_gib": peak_bytes() / 2**30,
    }
