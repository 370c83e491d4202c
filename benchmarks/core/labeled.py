"""What the tables of classes share: images to learn from without their labels, others that are scored."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from benchmarks.core.described import PIXELS, Described
from benchmarks.core.groupings import Start
from benchmarks.core.options import Options
from benchmarks.core.task import Score, Task
from benchmarks.data.images import Chosen
from benchmarks.data.labeled_images import LabeledImages
from pml_posets._validation import unit_rows
from pml_posets.plots import Tile

WIDTH = 14  # characters that fit under a tile


class LabeledTask(Task):
    """Images of classes: `train` is learned from without labels, features of `test` are scored by them.

    Args:
        name: of the data, for the results.
        data: images, labels, split; both sides may be the same images.
        options: of the run.
        num_clusters: K of k-means where the recipe leaves it open.

    Attributes:
        labels: (N,) classes of the tested images.
    """

    def __init__(self, name: str, data: LabeledImages, options: Options, num_clusters: int) -> None:
        unlabeled = Described(Chosen(data.images, data.train), options, flips=options.recipe.mirror_images)
        tested = unlabeled
        if not np.array_equal(data.train, data.test):
            tested = Described(Chosen(data.images, data.test), options, background=unlabeled)
        super().__init__(name, options, unlabeled, tested)
        self.data, self.num_clusters = data, num_clusters
        self.labels = data.labels[data.test]

    @cached_property
    def start(self) -> Start:
        """The first similarities of the images to learn from; supervised alone looks at the classes."""
        classes = np.unique(self.data.labels[self.data.train], return_inverse=True)[1]
        return replace(self.unlabeled.start(), labels=classes, num_clusters=self.num_clusters)

    def plain(self, method: str) -> Score:
        """Pixels less the mean of those to learn from, or HOG in one of its kinds."""
        return self.measured(self.described(method))

    def described(self, method: str) -> np.ndarray:
        """(N, D) unit rows of the tested images without a network."""
        if method != "pixels":
            return self.tested.hog(method)[0]
        rows = self.tested.pixels() - self.unlabeled.pixels().mean(axis=0)
        return unit_rows(rows.reshape(len(rows), -1))

    def origin(self) -> dict[str, Any]:
        """Which images are learned from, and K."""
        found = {key: value for key, value in self.data.settings().items() if key != "left_out"}
        return {**found, "default_clusters": self.num_clusters}

    def plain_settings(self, method: str) -> dict[str, Any]:
        return {"side": PIXELS} if method == "pixels" else super().plain_settings(method)

    def scored_settings(self) -> dict[str, Any]:
        return self.data.settings()

    def tile(self, image: Any, index: int, above: str = "", frame: str | None = None) -> Tile:
        """An image over what was measured of it, its file name and its class, a line each.

        Args:
            image: what is drawn.
            index: of the image among all of the data.
            above: the first line, such as "cosine .83".
            frame: color of the frame.
        """
        file = PurePosixPath(self.name_of(index)).name
        name = self.data.classes[self.data.labels[index]]
        file = file if len(file) <= WIDTH else "…" + file[1 - WIDTH :]
        name = name if len(name) <= WIDTH else name[: WIDTH - 1] + "…"
        return Tile(image, "\n".join(filter(None, (above, file, name))), frame)

    def name_of(self, index: int) -> str:
        """The name of an image of the data: its file, or its number where it has none."""
        return self.data.names[index] if self.data.names else f"image {index}"

    def row_name(self, index: int, method: str) -> str:
        """What stands beside the neighbors of an image: its whole name, and the method."""
        parts = self.name_of(index).split("/")
        return "\n".join([*(line for part in parts for line in textwrap.wrap(part, 26)), f"by {method}"])
