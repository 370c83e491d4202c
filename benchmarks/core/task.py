"""What a benchmark is to the session: images to learn from, images that are scored, and what is shown."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.core import common, methods
from benchmarks.core.cached import score_maps
from benchmarks.core.described import Described
from benchmarks.core.groupings import Start
from benchmarks.core.options import FIGURE_SIZES, Options
from benchmarks.core.results import Result
from benchmarks.figures.dataset import make_figures
from pml_posets.data.image_store import ImageStore
from pml_posets.features.network import extract


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
