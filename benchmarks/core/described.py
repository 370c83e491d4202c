"""Images of a benchmark, made ready: decoded at a size, described by HOG, and the first similarities."""

from __future__ import annotations

import copy
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core import common
from benchmarks.core.learning import Start
from benchmarks.core.options import RunOptions
from pml_posets.cache import digest
from pml_posets.features import HOGLDA, principal_components
from pml_posets.image_store import ImageStore
from pml_posets.sharing import main_first

Pair = tuple[np.ndarray, np.ndarray]  # (N, D) features of the images and of their mirror images


class Described:
    """A set of images, and what can be known of them without a network.

    Everything is made when it is first asked for, and kept in the cache folder. Where the ranks share work
    all must ask in the same order: rank 0 decodes and fits while the others wait, HOG is shared.

    Args:
        frames: yields PIL images; `frames.data_id` tells its content from any other.
        options: of the run: sizes, first similarities, cache folder.
        background: the HOG statistics of another set of images are used (those of the training images, for
            images that only test). Default: its own.

    Raises:
        OSError: if the cache folder cannot be written to.
    """

    def __init__(self, frames: Any, options: RunOptions, background: Described | None = None) -> None:
        self.frames = frames
        self.options = options
        self.folder = common.output_folder(options.cache, "--cache")
        self.data_id = frames.data_id
        self._shared: dict[str, Any] = {"num_workers": options.workers, "progress": options.progress}
        self._background = background
        self.images_of = cache(self._images_of)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def images(self) -> ImageStore:
        """(3, S, S) uint8 tensors, one an image, for the recipe's S."""
        return self.images_of(self.options.recipe.image_size)

    def _images_of(self, size: int) -> ImageStore:
        return main_first(
            lambda: ImageStore(self.frames, self.folder, size, data_id=self.data_id, **self._shared)
        )

    def hog(self, kind: str) -> Pair:
        """Unit rows: "hog" (mean subtracted), "hog-lda" (whitened), "hog-window" (weighted to the middle)."""
        finisher = copy.copy(self.statistics)
        finisher.normalize, finisher.whiten = True, kind == "hog-lda"
        finisher.window = self.options.window if kind == "hog-window" else None
        plain, mirrored = self._raw
        return finisher.finish(plain), finisher.finish(mirrored)

    def start(self, sources: np.ndarray | None) -> Start:
        """The first similarities, brought down to a few hundred columns."""
        first = self.hog(self.options.initial)
        if self.options.components:
            first = principal_components(first[0], self.options.components, first[1])
        return Start(first[0], first[1], sources)

    @cached_property
    def statistics(self) -> HOGLDA:
        """HOG minus the mean of random patches of the images; their statistics are kept in a file."""
        if self._background is not None:
            return self._background.statistics
        path = self.folder / f"hog-background-{digest(self.data_id, self.options.hog_size)[:16]}.npz"
        how = {**self._shared, "device": self.options.device}
        return main_first(lambda: background(self.frames, path, self.options.hog_size, how))

    @cached_property
    def _raw(self) -> Pair:
        return self.statistics.transform(
            self.frames,
            mirror=True,
            cache_dir=self.folder,
            data_id=self.data_id,
            device=self.options.device,
            **self._shared,
        )


def background(frames: Any, path: Path, size: int, how: dict[str, Any]) -> HOGLDA:
    """Background statistics from a file, or fitted and written there."""
    if path.exists():
        try:
            return HOGLDA.load(path)
        except ValueError:
            pass  # damaged: it is made anew
    describe = HOGLDA(image_size=size, whiten=False, normalize=False).fit_background(frames, **how)
    describe.save(path)
    return describe
