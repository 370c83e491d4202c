"""The task of olympic.py: frames of a tree, and the posture labels that features are scored by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from benchmarks.core import common, methods
from benchmarks.core.described import Described, Pair
from benchmarks.core.learning import Start
from benchmarks.core.options import FIGURE_SIZES, RunOptions
from benchmarks.core.session import Score
from benchmarks.data.olympic import OlympicFrames, OlympicTree, load_tree
from benchmarks.figures.dataset import make_figures
from benchmarks.measures.postures import RetrievalResult, retrieval_report
from pml_posets.data.cache import digest
from pml_posets.data.datasets import WithViews
from pml_posets.data.image_store import ImageStore
from pml_posets.features.network import extract


@dataclass(frozen=True)
class OlympicOptions(RunOptions):
    """What olympic.py was asked for. `data_root` None: drawn figures."""

    data_root: Path | None
    categories: tuple[str, ...] | None
    skip_unreadable: bool
    figures: str


@dataclass
class Shown:
    """What pictures are drawn from: features of the frames that the labels speak of, and their ROC."""

    features: Pair
    roc: RetrievalResult


class Postures:
    """A tree, ready to be learned from and scored on: the `Task` of olympic.py.

    Args:
        tree: its frames and its annotation.
        options: of the run.

    Attributes:
        name: of the data.
        tree: as given.
        described: its frames without a network.
    """

    measure: str = "auc"
    digits: int = 3

    def __init__(self, tree: OlympicTree, options: OlympicOptions) -> None:
        self.name = data_name(options)
        self.tree = tree
        self.options = options
        self.described = Described(OlympicFrames(tree), options)

    @property
    def images(self) -> ImageStore:
        """One a frame."""
        return self.described.images

    @cached_property
    def start(self) -> Start:
        """The first similarities; a frame's source is its video."""
        return self.described.start(self.tree.sources)

    def views(self, image_size: int) -> WithViews:
        """Views of images to learn from, augmented as the recipe says."""
        return self.described.views(image_size)

    def plain(self, method: str) -> Score:
        """HOG in one of its kinds."""
        return self.scored(self.described.hog(self.options.initial if method == "start" else method))

    def score(self, network: torch.nn.Module, image_size: int) -> Score:
        """The ROC of a network's features."""
        labels = self.tree.dataset_labels().values()
        needed = np.unique(
            np.concatenate([ids for one in labels for ids in (one.anchors, *one.pos_ids, *one.neg_ids)])
        )
        found = extract(
            network,
            Subset(self.described.images_of(image_size), needed.tolist()),
            batch_size=256,
            device=self.options.device,
            mirror=True,
            amp=self.options.amp,
            progress=self.options.progress,
        )
        both = np.zeros((2, len(self.tree), found[0].shape[1]), np.float32)
        both[:, needed] = found
        return self.scored((both[0], both[1]))

    def scored(self, features: Pair) -> Score:
        """The AUC of features: cosine similarity, mirror images where the labels ask for them."""
        roc = retrieval_report(features[0], self.tree.dataset_labels(), mirrored=features[1])
        by_category = {f"auc/{name}": auc for name, auc in roc.per_category.items()}
        return Score({"auc": roc.auc, **by_category}, Shown(features, roc))

    def origin(self) -> dict[str, Any]:
        """Which frames."""
        names = digest(list(self.tree.categories), list(self.tree.names))[:16]
        return {"data": self.name, "frames": len(self.tree), "frame_names": names}

    def plain_settings(self, method: str) -> dict[str, Any]:
        """Of HOG."""
        return {**self.described.settings(method), "frames": len(self.tree)}

    def scored_settings(self) -> dict[str, Any]:
        """How many frames there were."""
        return {"frames": len(self.tree), "left_out": len(self.tree.excluded)}


def data_name(options: OlympicOptions) -> str:
    """What the data are called in the results: the tree, and its categories if not all were asked for."""
    root = options.data_root
    name = f"figures-{options.figures}" if root is None else root.resolve().name
    return name if options.categories is None else f"{name}: {', '.join(sorted(options.categories))}"


def prepare(options: OlympicOptions) -> Postures:
    """Read the tree, or draw one.

    Raises:
        OSError, ValueError: for a tree that is incomplete, unreadable, or too small for a batch.
    """
    root = options.data_root
    if root is None:
        root = draw(options, options.figures)
    tree = load_tree(root, categories=options.categories, skip_unreadable=options.skip_unreadable)
    print(tree.summary(), flush=True)
    for excluded in tree.excluded:
        print(f"  left out: {excluded}")
    check_size(len(tree), f"{tree.root} holds only", options)
    return Postures(tree, options)


def draw(options: RunOptions, size: str) -> Path:
    """The tree of drawn figures of this size, drawn into the cache folder if it is not there yet."""
    root = common.output_folder(options.cache, "--cache") / f"figures-{size}"
    make_figures(root, num_workers=max(1, options.workers), **FIGURE_SIZES[size])
    return root


def check_size(found: int, there: str, options: RunOptions, num_clusters: int = 100) -> None:
    """See that there are enough images for a batch of every method, before any work is done.

    Args:
        found: images.
        there: where, for the message.
        options: of the run.
        num_clusters: K of k-means where the recipe leaves it open.

    Raises:
        ValueError: if not, or for clusters and batches that do not go with a method (see `methods.check`).
    """
    recipe, count = options.recipe, found
    if recipe.mirror_images:
        count *= 2
    learned = [method for method in options.methods if method in options.line.learned]
    if learned and count < recipe.batch_size:
        doubled = " (each with its mirror image)" if recipe.mirror_images else ""
        raise ValueError(
            f"a batch has {recipe.batch_size} images, but {there} {found}{doubled}: "
            f"use --batch-size {count - count % 2} or less"
        )
    for method in learned:
        methods.check(method, recipe, count, num_clusters)
