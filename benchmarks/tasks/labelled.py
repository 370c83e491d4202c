"""What the tasks of retrieval.py and clustering.py share: images to learn from without their labels."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from benchmarks.core.described import Described
from benchmarks.core.learning import Start
from benchmarks.core.options import RunOptions
from benchmarks.core.session import Score
from benchmarks.data.labelled_images import Chosen, LabelledImages
from pml_posets._validation import unit_rows
from pml_posets.data.datasets import WithViews
from pml_posets.data.image_store import ImageStore
from pml_posets.features.network import extract

PIXELS = 32  # side of the images that --method pixels compares


class LabelledTask:
    """Images of classes: `train` is learned from without labels, features of `test` are scored by them.

    A subclass scores features, in `measured`. Only the method supervised is given the classes of `train`.

    Args:
        name: of the data, for the results.
        data: images, labels, split; both sides may be the same images.
        options: of the run.
        num_clusters: K of k-means where the recipe leaves it open.

    Attributes:
        unlabelled: the images to learn from, without a network.
        tested: the images that are scored, likewise.
        labels: (N,) classes of the tested images.
    """

    measure: str
    digits: int = 3

    def __init__(self, name: str, data: LabelledImages, options: RunOptions, num_clusters: int) -> None:
        self.name, self.data, self.options, self.num_clusters = name, data, options, num_clusters
        flips = options.recipe.mirror_images
        self.unlabelled = Described(Chosen(data.images, data.train), options, flips=flips)
        self.tested = self.unlabelled
        if not np.array_equal(data.train, data.test):
            self.tested = Described(Chosen(data.images, data.test), options, background=self.unlabelled)
        self.labels = data.labels[data.test]

    @property
    def images(self) -> ImageStore:
        """To learn from."""
        return self.unlabelled.images

    @cached_property
    def start(self) -> Start:
        """The first similarities of the images to learn from."""
        classes = np.unique(self.data.labels[self.data.train], return_inverse=True)[1]
        return replace(self.unlabelled.start(None), labels=classes, num_clusters=self.num_clusters)

    def measured(self, features: np.ndarray) -> Score:
        """What (N, D) features of the tested images are worth."""
        raise NotImplementedError

    def views(self, image_size: int) -> WithViews:
        """Views of images to learn from, augmented as the recipe says."""
        return self.unlabelled.views(image_size)

    def plain(self, method: str) -> Score:
        """Pixels, or HOG in one of its kinds."""
        return self.measured(self.described(method))

    def described(self, method: str) -> np.ndarray:
        """(N, D) unit rows of the tested images without a network: pixels less their mean, or HOG."""
        if method == "pixels":
            mean = _pixels(self.unlabelled).mean(axis=0)
            return unit_rows(_pixels(self.tested) - mean)
        return self.tested.hog(self.options.initial if method == "start" else method)[0]

    def score(self, network: torch.nn.Module, image_size: int) -> Score:
        """A network's features."""
        features = extract(
            network,
            self.tested.images_of(image_size),
            batch_size=256,
            device=self.options.device,
            amp=self.options.amp,
            progress=self.options.progress,
        )
        return self.measured(features)

    def origin(self) -> dict[str, Any]:
        """Which images are learned from, and K."""
        found = {key: value for key, value in self.data.settings().items() if key != "left_out"}
        return {**found, "default_clusters": self.num_clusters}

    def plain_settings(self, method: str) -> dict[str, Any]:
        """Of pixels or HOG."""
        if method == "pixels":
            return {"side": PIXELS}
        return self.tested.settings(method)

    def scored_settings(self) -> dict[str, Any]:
        """Which images are scored."""
        return self.data.settings()


def _pixels(images: Described) -> np.ndarray:
    """(N, D) float32."""
    store = images.images_of(PIXELS)
    rows = np.empty((len(store), 3 * PIXELS**2), np.float32)
    for index in range(len(store)):
        rows[index] = store[index].flatten().numpy()
    return rows
