"""HOG-LDA against scikit-image, and what an import takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from benchmarks.timing.clock import peak_bytes

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


def time_hog(num_images: int, workers: int, repeats: int, seed: int, quiet: bool) -> dict[str, float]:
    """Images a second of HOG-LDA by worker processes over scikit-image's in one; in a process of its own.

    The start of the workers counts: thousands of images are needed to make up for it.
    """
    from skimage.feature import hog

    from pml_posets import HOGLDA

    images = np.random.default_rng(seed).integers(0, 256, (num_images, 96, 96, 3), dtype=np.uint8)
    lda = HOGLDA().fit_background(images[:64], num_patches=200, progress=False, seed=seed)
    lda.transform(images[:8], progress=False)  # the whitening is made ready once
    found: dict[str, list[float]] = {"skimage": [], "hoglda": []}
    with tqdm(total=2 * repeats, desc="HOG-LDA", disable=quiet) as bar:
        for _ in range(repeats):
            start = time.perf_counter()
            for image in images:
                hog(image.astype(np.float32), 9, (8, 8), (2, 2), feature_vector=False, channel_axis=-1)
            found["skimage"].append(time.perf_counter() - start)
            bar.update()
            start = time.perf_counter()
            lda.transform(images, num_workers=workers, progress=False)
            found["hoglda"].append(time.perf_counter() - start)
            bar.update()
    ratio = float(np.median(np.divide(found["skimage"], found["hoglda"])))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = max(1, min(workers, cores))
    return {
        "skimage_images_per_second": num_images / float(np.median(found["skimage"])),
        "hoglda_images_per_second": num_images / float(np.median(found["hoglda"])),
        "times_skimage": ratio,
        "times_skimage_per_process": ratio / processes,
        "peak_gib": peak_bytes() / 2**30,
    }


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
