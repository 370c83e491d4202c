"""Runs of the benchmarks that take seconds, for their tests: a network, options, rows and weights."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.core import described, options
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.distributed.process_group import rank
from pml_posets.training.joint import JointTrainer

TRUNK = "benchmark_runs:thin"
RECIPE = [
    *("--preset", "tiny", "--trunk", TRUNK, "--iterations", 1, "--batch-size", 16, "--fc-dim", 8),
    *("--top-fraction", 0.3, "--precision", "float32"),
]
FIGURES = {
    "sports": ("run", "throw"),
    "num_sources": 3,
    "num_clips": 1,
    "num_frames": 6,
    "size": 48,
    "num_anchors": 6,
}
"""A drawn tree of 36 frames."""
LEARNED = ["posets", "cliques", "triplet", "ntxent", "posets-fixed", "surrogate+ms+feature"]


def thin(norm=nn.BatchNorm2d):
    """A trunk that trains in a fraction of AlexNet's time, (B, 3, 64, 64) -> (B, 12, 7, 7)."""
    first, second = nn.Conv2d(3, 8, kernel_size=7, stride=4), nn.Conv2d(8, 12, kernel_size=1)
    nn.init.kaiming_normal_(first.weight)
    return nn.Sequential(first, norm(8), nn.ReLU(), nn.MaxPool2d(2), second)


def without_norm():
    """The same without batch norm."""
    return thin(nn.Identity)


def quick(cache, output, *more):
    """The command line of a run with two rounds of one iteration, the same numbers each time bit for bit."""
    shared = ["--cache", cache, "--workers", 0, "--quiet", "--hog-size", 32, "--components", 32]
    return [str(a) for a in ("--output", output, *shared, *RECIPE, *more)]


@contextmanager
def few_patches() -> Iterator[None]:
    """Statistics of HOG from 200 patches: they need not be good here."""
    fit = described.HOGLDA.fit_background

    def quickly(self, *images, **given):
        return fit(self, *images, **{**given, "num_patches": 200})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(described.HOGLDA, "fit_background", quickly)
        yield


@contextmanager
def as_of_several_processes(home):
    """Figures are few and not moved, on one thread; the groups of each round go to `home`, by rank."""
    threads, y_step = torch.get_num_threads(), JointTrainer._y_step

    def noted(joint):
        y_step(joint)
        np.save(home / f"groups-{rank()}-{joint.round}.npy", joint.posets.labels)

    with pytest.MonkeyPatch.context() as patch, few_patches():
        patch.setitem(options.FIGURE_SIZES, "tiny", FIGURES)
        patch.setattr(BatchAugmentation, "_move", lambda self, images: images)
        patch.setattr(JointTrainer, "_y_step", noted)
        torch.set_num_threads(1)
        yield patch
        torch.set_num_threads(threads)


def rows_of(folder):
    """(method, seed) to its row of results.json."""
    return {(row["method"], row["seed"]): row for row in json.loads((folder / "results.json").read_text())}


def table_of(folder):
    """The first table in table.md, its cells row by row, and the text below it."""
    table, _, below = (folder / "table.md").read_text().partition("\n\n")
    header, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [header, *lines], below


def weights(folder):
    """Every weight in a checkpoint, by name."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["parts"]["models"]
    return {f"{name} {key}": value for name, part in state.items() for key, value in part.items()}


def keep_measured(monkeypatch, task):
    """A list that gets (features, what they are scored by) of each score of a task."""
    seen, measured = [], task.measured

    def keep(self, features):
        seen.append((features, getattr(self, "labels", None)))
        return measured(self, features)

    monkeypatch.setattr(task, "measured", keep)
    return seen


def assert_picture(path):
    """It is large enough, and something is on it."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 100
    assert len(np.unique(pixels)) > 20
