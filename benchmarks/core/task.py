"""What a benchmark is to the session: images to learn from, images that are scored, and what is shown."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from benchmarks.core import common, methods
from benchmarks.core.cached import score_maps
from benchmarks.core.described import PIXELS, Described
from benchmarks.core.groupings import Start
from benchmarks.core.options import FIGURE_SIZES, Options
from benchmarks.core.results import Result
from benchmarks.data.images import Chosen
from benchmarks.data.labeled_images import LabeledImages
from benchmarks.figures.dataset import make_figures
from benchmarks.measures.pose import pose_classes
from pml_posets._validation import unit_rows
from pml_posets.data.image_store import ImageStore
from pml_posets.features.network import extract
from pml_posets.plots import Tile

WIDTH = 14  # characters that fit under a tile


@dataclass
class Score:
    """What a set of features is worth: each measure's value, and what pictures are drawn from."""

    metrics: dict[str, float]
    shown: Any = None


class Task:
    """A benchmark's data, ready to be learned from and scored on. The file of each table has a subclass.

    Args:
        name: of the data, for the results.
        options: of the run.
        unlabeled: the images to learn from; no label is used, but by the method supervised.
        tested: the images that are scored. Default: the same.

    Attributes:
        measure: the main one, a key of the metrics and of `columns`.
        columns: measures to their titles in the table.
        digits: behind the point of what is shown.
        paper, paper_title: published values by method, and the title of their column; "": none.
        mirror: features of the mirrored images are scored too: `measured` gets pairs.
    """

    measure: str
    columns: Mapping[str, str]
    digits: int = 3
    paper: Mapping[str, str] = {}
    paper_title: str = ""
    mirror: bool = False

    def __init__(
        self, name: str, options: Options, unlabeled: Described, tested: Described | None = None
    ) -> None:
        self.name, self.options = name, options
        self.unlabeled, self.tested = unlabeled, tested or unlabeled

    def measured(self, features: Any) -> Score:
        """What (N, D) features of the tested images are worth; with `mirror` a pair."""
        raise NotImplementedError

    def origin(self) -> dict[str, Any]:
        """What a training starts from, beside its recipe and its seed, as plain values."""
        raise NotImplementedError

    def scored_settings(self) -> dict[str, Any]:
        """What every score depends on, beside what a training starts from."""
        raise NotImplementedError

    def notes(self, results: list[Result]) -> list[str]:
        """Lines, or a further table, below the main table."""
        return []

    def pictures(self, shown: Mapping[str, Any]) -> dict[str, Any]:
        """Names of files to figures, from `Score.shown` of each method under the first seed."""
        return {}

    @property
    def images(self) -> ImageStore:
        """(3, S, S) uint8 tensors to learn from, for the recipe's S."""
        return self.unlabeled.images

    @cached_property
    def start(self) -> Start:
        """The first similarities of the images to learn from."""
        return self.unlabeled.start()

    def knowing_poses(self, start: Start, joints: np.ndarray | None) -> Start:
        """The first similarities, and for supervised classes of alike poses; mirror images have none."""
        if joints is None or "supervised" not in self.options.methods:
            return start
        return replace(start, labels=pose_classes(joints), flippable=False)

    def plain(self, method: str) -> Score:
        """A method without a network: HOG in one of its kinds."""
        features = self.tested.hog(method)
        return self.measured(features if self.mirror else features[0])

    def score(self, network: torch.nn.Module, image_size: int) -> Score:
        """A network, (B, 3, S, S) uint8 images to (B, D) features, in evaluation mode."""
        images = self.tested.images_of(image_size)
        if not self.mirror:  # the maps of a mirrored image are not the mirrored maps
            options = self.options
            images = score_maps(network, images, self.tested.folder, options.recipe, options.progress)
        return self.measured(self.with_start(self.extract(network, images)))

    def with_start(self, features: Any) -> Any:
        """Unit features of a network, and beside them the first similarities where that was asked for."""
        if not self.options.with_start:
            return features
        first = self.tested.hog("start")
        if not self.mirror:
            return np.hstack([features, first[0]])
        return tuple(np.hstack([mine, theirs]) for mine, theirs in zip(features, first, strict=True))

    def extract(self, network: torch.nn.Module, images: Any) -> Any:
        """The network's features of images; with `mirror` a pair."""
        options = self.options
        how: dict[str, Any] = {"device": options.device, "amp": options.amp, "progress": options.progress}
        return extract(network, images, batch_size=256, mirror=self.mirror, **how)

    def plain_settings(self, method: str) -> dict[str, Any]:
        """What the numbers of a method without a network depend on."""
        return self.tested.settings(method) if method.startswith(("hog", "start")) else {}

    def seen(self) -> str:
        """In words, what the networks that a run trains see and begin from, and which layer is scored."""
        options = self.options
        begin = "random" if options.init is None else "ImageNet"
        begin = f"{options.recipe.trunk}'s own" if options.recipe.brings_weights else begin
        scored = f"InstanceLDA of {options.layer}" if options.instance_lda else options.layer
        scored += " and the first similarities" if options.with_start else ""
        return f"{options.recipe.image_size} px, {begin} weights at the beginning, {scored} scored."


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


def check_size(found: int, where: str, options: Options, num_clusters: int = 100) -> None:
    """See that so many images are enough for a batch of every method, before any work is done.

    `where` they are stands in the message; num_clusters is K of k-means where the recipe leaves it open.
    """
    recipe = options.recipe
    count = found * (2 if recipe.mirror_images else 1)
    if options.learned and count < recipe.batch_size:
        doubled = " (each with its mirror image)" if recipe.mirror_images else ""
        raise ValueError(
            f"a batch has {recipe.batch_size} images, but {where} {found}{doubled}: "
            f"use --batch-size {count - count % 2} or less"
        )
    for method in options.learned:
        methods.check(method, recipe, count, num_clusters)


def draw(given: argparse.Namespace) -> Path:
    """The tree of drawn figures of the size that was asked for, in the cache folder; drawn if need be."""
    size = given.figures or "full"
    root = common.output_folder(given.cache, "--cache") / f"figures-{size}"
    make_figures(root, num_workers=max(1, given.workers), **FIGURE_SIZES[size])
    return root


def root_name(given: argparse.Namespace) -> str:
    """What the data are called in the results: the name of their folder, or figures-full."""
    root = given.data_root
    return f"figures-{given.figures or 'full'}" if root is None else str(root.resolve().name)
