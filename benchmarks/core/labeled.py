"""What the tables of classes share: images to learn from without their labels, others that are scored."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.core.described import PIXELS, Described
from benchmarks.core.groupings import Start
from benchmarks.core.options import Options
from benchmarks.core.task import Score, Task
from benchmarks.data.images import Chosen
from benchmarks.data.labeled_images import LabeledImages
from pml_posets._validation import unit_rows


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
        """Of pixels or HOG."""
        return {"side": PIXELS} if method == "pixels" else super().plain_settings(method)

    def scored_settings(self) -> dict[str, Any]:
        """Which images are scored."""
        return self.data.settings()
