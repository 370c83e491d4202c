"""Trainings of a second on images of noise, for the tests of the benchmarks' methods."""

from dataclasses import replace

import numpy as np
import torch

from benchmarks.core.groupings import Start
from benchmarks.core.recipes import PRESETS
from pml_posets.losses.pseudo_label import WeightedLosses

SHORT = replace(
    PRESETS["tiny"], rounds=2, iterations=2, batch_size=8, fc_dim=16, top_fraction=0.2, mirror_images=False,
    random_fraction=0.0, precision="float32",
)  # fmt: skip


def start_of_kinds(num, kinds, **more):
    """A start whose samples are of some kinds in turn, with mirror images near the originals."""
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((kinds, 12))[np.arange(num) % kinds]
    features = unit(middles + 0.9 * rng.standard_normal(middles.shape))
    return Start(features, unit(features + 0.1 * rng.standard_normal(middles.shape)), **more)


class Images(torch.utils.data.Dataset):
    """Uniform noise; three channels, uint8."""

    def __init__(self, num, size=64):
        self.pixels = np.random.default_rng(1).integers(0, 256, (num, 3, size, size), np.uint8)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return torch.from_numpy(self.pixels[index].copy())


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


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


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def weights(joint):
    parts = [*joint.models.items(), *joint.loss_funcs.items()]
    state = {f"{name} {key}": value for name, part in parts for key, value in part.state_dict().items()}
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
