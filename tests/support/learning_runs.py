"""Trainings of a second on images of noise, for the tests of the benchmarks' methods."""

from dataclasses import replace

import numpy as np
import torch
from benchmark_runs import TRUNK
from trainings import Killed

from benchmarks.core.groupings import Start
from benchmarks.core.learning import train
from benchmarks.core.recipes import PRESETS
from pml_posets.losses.pseudo_label import WeightedLosses

NUM, KINDS = 48, 6
SHORT = replace(
    PRESETS["tiny"], trunk=TRUNK, rounds=2, iterations=2, batch_size=8, fc_dim=16, top_fraction=0.2,
    mirror_images=False, random_fraction=0.0, precision="float32", num_clusters=5, samples_per_cluster=2,
    num_transforms=3,
)  # fmt: skip


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def start_of_kinds(num, kinds, **more):
    """A start whose samples are of some kinds in turn, with mirror images near the originals."""
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((kinds, 12))[np.arange(num) % kinds]
    features = unit(middles + 0.9 * rng.standard_normal(middles.shape))
    return Start(features, unit(features + 0.1 * rng.standard_normal(middles.shape)), **more)


START = start_of_kinds(NUM, KINDS, sources=np.arange(NUM) // KINDS, labels=np.arange(NUM) % KINDS)
"""A source has one sample of each kind, a kind eight."""


class Images(torch.utils.data.Dataset):
    """Uniform noise; three channels, uint8."""

    def __init__(self, num):
        self.pixels = np.random.default_rng(1).integers(0, 256, (num, 3, 64, 64), np.uint8)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return torch.from_numpy(self.pixels[index].copy())


def run(method, changes=None, given=START, seed=0, **options):
    """Train by a method, by the short recipe but for some of its values."""
    recipe = replace(SHORT, **(changes or {}))
    return train(method, Images(NUM), given, recipe, seed=seed, progress=False, **options)


def brief_run(folder, **changes):
    """A run of posets on 24 images, one round of two iterations of AlexNet, and its recipe."""
    recipe = replace(
        PRESETS["tiny"], rounds=1, iterations=2, batch_size=8, fc_dim=8, top_fraction=0.5,
        mirror_images=False, precision="float32", **changes,
    )  # fmt: skip
    given = Images(24), start_of_kinds(24, 4)
    return train("posets", *given, recipe, seed=0, output_dir=folder, progress=False), recipe


class Watch:
    """Stands for a log: sees every iteration, and kills the run before the next one if asked to."""

    def __init__(self, kill_after=None):
        self.kill_after, self.seen = kill_after, []

    def record(self, trainer):
        self.seen.append({name: float(torch.as_tensor(v).detach()) for name, v in trainer.losses.items()})
        metric = trainer.loss_funcs.get("metric_loss")
        if isinstance(metric, WeightedLosses):
            self.seen[-1] |= {name: float(value) for name, value in metric.values.items()}
        if len(self.seen) == self.kill_after:
            raise Killed


def weights(joint):
    parts = [*joint.models.items(), *joint.loss_funcs.items()]
    state = {f"{name} {key}": value for name, part in parts for key, value in part.state_dict().items()}
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
