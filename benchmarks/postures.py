"""The data of olympic.py, made ready: frames decoded, HOG described, first similarities."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pml_posets.cache import digest
from pml_posets.evaluation import RetrievalResult, retrieval_report
from pml_posets.features import HOGLDA, principal_components
from pml_posets.image_store import ImageStore

from . import common
from .figures import make_figures
from .learning import Start
from .olympic_data import OlympicFrames, OlympicTree, load_tree
from .options import FIGURE_SIZES, LEARNED, RunOptions

Pair = tuple[np.ndarray, np.ndarray]  # (N, D) features of the frames and of their mirror images


@dataclass
class Postures:
    """A tree, ready to be learned from.

    Args:
        name: of the data, for the results.
        tree: its annotation.
        images: (3, S, S) uint8 tensors, one a frame, for the recipe's S.
        images_of: the same for any S, made when asked for.
        hog: name to features, made when asked for: "hog" (mean subtracted), "hog-lda" (whitened),
            "hog-window" (weighted towards the box's middle); unit rows.
        start: the first similarities, brought down to a few hundred columns.
    """

    name: str
    tree: OlympicTree
    images: ImageStore
    images_of: Callable[[int], ImageStore]
    hog: Callable[[str], Pair]
    start: Start

    def score(self, features: Pair) -> RetrievalResult:
        """The ROC curves of features: cosine similarity, mirror images where the labels ask for them."""
        return retrieval_report(features[0], self.tree.dataset_labels(), mirrored=features[1])


def data_name(options: RunOptions) -> str:
    """What the data are called in the results: the tree, and its categories if not all were asked for."""
    root = options.data_root
    name = f"figures-{options.figures}" if root is None else root.resolve().name
    return name if options.categories is None else f"{name}: {', '.join(sorted(options.categories))}"


def prepare(options: RunOptions) -> Postures:
    """Read the tree (or draw one), decode its crops, and describe them by HOG."""
    folder = common.output_folder(options.cache, "--cache")
    root = options.data_root
    if root is None:
        root = folder / f"figures-{options.figures}"
        make_figures(root, num_workers=max(1, options.workers), **FIGURE_SIZES[options.figures])
    tree = load_tree(root, categories=options.categories, skip_unreadable=options.skip_unreadable)
    print(tree.summary(), flush=True)
    for excluded in tree.excluded:
        print(f"  left out: {excluded}")
    check_size(tree, options)
    frames = OlympicFrames(tree)
    identity = frames.data_id
    shared: dict[str, Any] = {"num_workers": options.workers, "progress": options.progress}

    @cache
    def images_of(size: int) -> ImageStore:
        return ImageStore(frames, folder, size, data_id=identity, **shared)

    images = images_of(options.recipe.image_size)
    statistics = folder / f"hog-background-{digest(identity, options.hog_size)[:16]}.npz"
    describe = background(frames, statistics, options.hog_size, shared)
    plain, mirrored = describe.transform(frames, mirror=True, cache_dir=folder, data_id=identity, **shared)

    def hog(kind: str) -> Pair:
        finisher = copy.copy(describe)
        finisher.normalize, finisher.whiten = True, kind == "hog-lda"
        finisher.window = options.window if kind == "hog-window" else None
        return finisher.finish(plain), finisher.finish(mirrored)

    first = hog(options.initial)
    if options.components:
        first = principal_components(first[0], options.components, first[1])
    start = Start(first[0], first[1], tree.sources)
    return Postures(data_name(options), tree, images, images_of, hog, start)


def check_size(tree: OlympicTree, options: RunOptions) -> None:
    """See that there are enough frames for a batch, before any work is done.

    Raises:
        ValueError: if not.
    """
    recipe, count = options.recipe, len(tree)
    if recipe.mirror_images:
        count *= 2
    if set(options.methods) & set(LEARNED) and count < recipe.batch_size:
        doubled = " (each with its mirror image)" if recipe.mirror_images else ""
        raise ValueError(
            f"a batch has {recipe.batch_size} images, but {tree.root} holds only {len(tree)}{doubled}: "
            f"use --batch-size {count - count % 2} or less"
        )


def background(frames: OlympicFrames, path: Path, size: int, shared: dict[str, Any]) -> HOGLDA:
    """HOG minus the mean of random patches of the frames; their statistics are kept in a file."""
    if path.exists():
        try:
            return HOGLDA.load(path)
        except ValueError:
            pass  # damaged: it is made anew
    describe = HOGLDA(image_size=size, whiten=False, normalize=False).fit_background(frames, **shared)
    describe.save(path)
    return describe


def origin(options: RunOptions, postures: Postures) -> dict[str, Any]:
    """What a training starts from, beside its recipe and its seed."""
    tree = postures.tree
    return {
        "data": postures.name,
        "frames": len(tree),
        "frame_names": digest(list(tree.categories), list(tree.names))[:16],
        "hog_size": options.hog_size,
        "initial": options.initial,
        "window": None if options.window is None else list(options.window),
        "components": options.components,
        "init": None if options.init is None else options.init.name,
    }
