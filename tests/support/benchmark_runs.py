"""Runs of the benchmarks that take seconds, for their tests: options, rows and weights."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.core import described

RECIPE = ["--preset", "tiny", "--iterations", 1, "--batch-size", 16, "--fc-dim", 8, "--top-fraction", 0.3]
FIGURES = {
    "sports": ("run", "throw"),
    "num_sources": 3,
    "num_clips": 1,
    "num_frames": 6,
    "size": 48,
    "num_anchors": 6,
}
"""A drawn tree of 36 frames."""
THIN = (8, 12, 16, 12, 16)
"""Widths of an AlexNet that need not learn."""
LEARNED = ["posets", "cliques", "triplet", "ntxent", "posets-fixed"]


def quick(cache, output, *more):
    """The command line of a run with two rounds of one iteration, the same numbers each time bit for bit."""
    shared = ["--cache", cache, "--workers", 0, "--quiet", "--hog-size", 32, "--components", 32]
    return [str(a) for a in ("--output", output, *shared, *RECIPE, "--precision", "float32", *more)]


@contextmanager
def few_patches() -> Iterator[None]:
    """Statistics of HOG from 200 patches: they need not be good here."""
    fit = described.HOGLDA.fit_background

    def quickly(self, *images, **given):
        return fit(self, *images, **{**given, "num_patches": 200})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(described.HOGLDA, "fit_background", quickly)
        yield


def rows_of(folder):
    """(method, seed) to its row of results.json."""
    return {(row["method"], row["seed"]): row for row in json.loads((folder / "results.json").read_text())}


def weights(folder):
    """Every weight in a checkpoint, by name."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["parts"]["models"]
    return {f"{name} {key}": value for name, part in state.items() for key, value in part.items()}


def assert_picture(path):
    """It is large enough, and something is on it."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 100
    assert len(np.unique(pixels)) > 20
