"""HOG-LDA against scikit-image, and what an import takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from benchmarks.timing.clock import in_turns, peak_bytes

ROOT = Path(__file__).resolve().parents[2]
_IMPORT = """
import time
import pytorch_metric_learning.losses, pytorch_metric_learning.trainers
start = time.perf_counter()
{what}
print(time.perf_counter() - start)
"""
IMPORTS = {
    "nothing": "pass",
    "package": "import pml_posets",
    "names": "import pml_posets\nfor name in pml_posets.__all__: getattr(pml_posets, name)",
}


def time_hog(num_images: int, repeats: int, seed: int, quiet: bool) -> dict[str, float]:
    """Images a second of HOG-LDA over those of scikit-image's HOG alone; in a process of its own.

    The images are in memory. scikit-image has one core, HOG-LDA has the threads of torch.
    """
    import torch
    from skimage.feature import hog

    from pml_posets import HOGLDA

    images = np.random.default_rng(seed).integers(0, 256, (num_images, 96, 96, 3), dtype=np.uint8)
    lda = HOGLDA().fit_background(images[:64], num_patches=200, progress=False, random_state=seed)
    lda.transform(images[:8], progress=False)  # the whitening is made ready once

    def by_skimage() -> None:
        for image in images:
            hog(image.astype(np.float32), 9, (8, 8), (2, 2), feature_vector=False, channel_axis=-1)

    things: dict[str, Callable[[], Any]] = {
        "skimage": by_skimage,
        "hog": lambda: lda.grid.describe(images),
        "hoglda": lambda: lda.transform(images, progress=False),
    }
    times = in_turns(things, repeats, "HOG-LDA", quiet, warm_up=0)
    row = {f"{name}_images_per_second": num_images / times.seconds(name) for name in things}
    for name in ("hog", "hoglda"):
        row[f"{name}_times_skimage"] = times.ratio("skimage", name)
    row["hoglda_times_skimage_a_core"] = row["hoglda_times_skimage"] / torch.get_num_threads()
    row["hoglda_times_skimage_cpu"] = times.ratio("skimage", "hoglda", "cpu")
    return row | {"peak_gib": peak_bytes() / 2**30}


def time_startup(repeats: int, quiet: bool) -> dict[str, float]:
    """Seconds that importing the package adds to importing pytorch_metric_learning; fresh interpreters."""
    found: dict[str, list[float]] = {name: [] for name in IMPORTS}
    with tqdm(total=repeats * len(IMPORTS), desc="start-up", disable=quiet) as bar:
        for _ in range(repeats):
            for name, what in IMPORTS.items():
                script = _IMPORT.format(what=what)
                answer = subprocess.run(
                    [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
                )
                found[name].append(float(answer.stdout))
                bar.update()
    middle = {name: float(np.median(seconds)) for name, seconds in found.items()}
    return {
        "seconds_added": middle["package"] - middle["nothing"],
        "seconds_added_by_all_names": middle["names"] - middle["nothing"],
    }
