"""Images of a benchmark, made ready: decoded at a size, described by HOG, and the first similarities."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from benchmarks.core import common, networks
from benchmarks.core.groupings import Start
from benchmarks.core.learning import augmentation
from benchmarks.core.options import WINDOW, Options
from pml_posets.data.augmentation import BatchAugmentation
from pml_posets.data.cache import FeatureCache, digest
from pml_posets.data.datasets import WithViews, mirror
from pml_posets.data.image_store import ImageStore
from pml_posets.distributed.sharing import main_first
from pml_posets.embedder import Embedder
from pml_posets.features.hog_lda import HOGLDA
from pml_posets.features.instance_lda import InstanceLDA
from pml_posets.features.motion_hog import MotionHOG
from pml_posets.features.network import extract
from pml_posets.features.pooled import PartialWhitening
from pml_posets.features.reduction import principal_components

VIEWS = {"num_images": 5000, "num_views": 8}  # that "hog-views" is learned from, at most
ALL = 10**9  # directions: more than there are
PIXELS = 32  # side of the images that --method pixels compares

Pair = tuple[np.ndarray, np.ndarray]  # (N, D) features of the images and of their mirror images
Arrays = dict[str, np.ndarray]


class Described:
    """A set of images, and what can be known of them without a network.

    Everything is made when it is first asked for, and kept in the cache folder. Where the ranks share work
    all must ask in the same order: rank 0 decodes and fits while the others wait, HOG is shared.

    Args:
        frames: yields PIL images; `frames.data_id` is the identity of its content.
        background: whose HOG statistics are used (those of the training images, for images that only test).
            Default: its own.
        flips: an image and its mirror image show the same thing: half of the views are mirrored. Default
            False.

    Raises:
        OSError: if the cache folder cannot be written to.
    """

    def __init__(
        self, frames: Any, options: Options, background: Described | None = None, flips: bool = False
    ) -> None:
        self.frames = frames
        self.flips = flips
        self.options = options
        self.folder = common.output_folder(options.cache, "--cache")
        self.data_id = frames.data_id
        self._shared: dict[str, Any] = {"num_workers": options.workers, "progress": options.progress}
        self._background = background or self
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

    def pixels(self) -> np.ndarray:
        """(N, 3, 32, 32) float32."""
        store = self.images_of(PIXELS)
        return np.stack([store[i].numpy() for i in range(len(store))]).astype(np.float32)

    def hog(self, kind: str) -> Pair:
        """Unit rows: "hog" (mean subtracted), "hog-lda" (whitened), "hog-window" (weighted to the middle).

        "hog-views" is an embedding of HOG, learned from augmented views of the images; "network" is
        `Embedder` over the network as it begins: an image and its mirror image have the same row. "trunk" are
        the principal components of the trunk's output as it begins.
        """
        if kind == "start":
            kind = self.options.first
        if kind == "hog-views":
            return self._embedded
        if kind == "network":
            return self._by_network
        if kind == "trunk":
            return self._by_trunk
        finisher = copy.copy(self.statistics)
        finisher.normalize, finisher.whiten = True, kind == "hog-lda"
        finisher.window = self.options.window if kind == "hog-window" else None
        plain, mirrored = self._raw
        return finisher.finish(plain), finisher.finish(mirrored)

    def start(self, sources: np.ndarray | None = None, times: np.ndarray | None = None) -> Start:
        """The first similarities, brought down to a few hundred columns."""
        plain, mirrored = self.hog("start")
        if self.options.first == "network":
            return Start(plain, None, sources, times)
        if self.options.components and self.options.first != "trunk":
            plain, mirrored = principal_components(plain, self.options.components, mirrored)
        return Start(plain, mirrored, sources, times)

    def motion(self, sources: np.ndarray, times: np.ndarray) -> Start:
        """What HOG, motion and neighbors in time say of the frames of videos, instead of the first
        similarities: a network that predicts it from single frames learns what these do not know.
        """
        described = MotionHOG(self.options.hog_size, window=self.options.window or WINDOW)

        def describe() -> Arrays:
            plain, mirrored = described.fit_transform(self.frames, sources, times)
            return {"plain": plain, "mirrored": mirrored}

        return Start(*_pair(self._kept({"motion": repr(described)}, describe)), sources, times)

    def _kept(self, settings: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
        """What rank 0 makes, or finds in the cache folder."""
        cache = FeatureCache(self.folder)
        key = cache.key(dict(settings), self.frames, self.data_id)

        def find() -> Arrays:
            found = cache.load(key)
            if found is None:
                found = make()
                cache.save(key, found)
            return found

        return main_first(find)

    @cached_property
    def statistics(self) -> HOGLDA:
        """HOG minus the mean of random patches of the images; their statistics are kept in a file."""
        if self._background is not self:
            return self._background.statistics
        path = self.folder / f"hog-background-{digest(self.data_id, self.options.hog_size)[:16]}.npz"
        how = {**self._shared, "device": self.options.device}
        return main_first(lambda: background(self.frames, path, self.options.hog_size, how))

    @cached_property
    def _raw(self) -> Pair:
        cached = {"cache_dir": self.folder, "data_id": self.data_id, "device": self.options.device}
        return self.statistics.transform(self.frames, mirror=True, **cached, **self._shared)

    def views(self, size: int) -> WithViews:
        """(3, S, S) in [0, 1], for this S: augmented views of some thousands of the images, of all if few."""
        chosen = np.random.default_rng(0).permutation(len(self))[: VIEWS["num_images"]]
        view = partial(_view, augment=augmentation(self.options.recipe).train(), flips=self.flips)
        return WithViews(Subset(self.images_of(size), chosen.tolist()), view, VIEWS["num_views"])

    def settings(self, kind: str) -> dict[str, Any]:
        """What HOG of a kind, or the first similarities ("start"), depend on beside the images."""
        options, recipe = self.options, self.options.recipe
        found: dict[str, Any] = {"hog_size": options.hog_size}
        if kind == "start":
            kind, window = options.first, options.window
            found |= {"first_similarities": kind, "window": None if window is None else list(window)}
        if kind == "trunk":
            found |= {"first_similarities": kind, "components": options.components}
        if kind in ("network", "trunk"):
            found |= {**recipe.architecture.settings(), "flips": self._background.flips}
            found |= {"init": None if options.init is None else options.init.name}
            found |= {"precision": recipe.precision}
        if kind == "hog-views":
            found |= {**VIEWS, "flips": self._background.flips, "scale": list(recipe.scale)}
            found |= {"brightness": recipe.brightness, "color": recipe.color, "gray": recipe.gray}
        return found

    @cached_property
    def _embedded(self) -> Pair:
        plain, mirrored = self._raw

        def embed() -> Arrays:
            learned = self._background.instance_lda
            return {"plain": learned.transform(plain), "mirrored": learned.transform(mirrored)}

        return _pair(self._kept({**self.settings("hog-views"), "from": self._background.data_id}, embed))

    @cached_property
    def _by_network(self) -> Pair:
        def embed() -> Arrays:
            return {"plain": self._background.embedder.transform(self.images)}

        return _pair(self._kept({**self.settings("network"), "from": self._background.data_id}, embed))

    @cached_property
    def _by_trunk(self) -> Pair:
        def embed() -> Arrays:
            components = self._background.components
            plain, mirrored = map(components.transform, self._trunk_rows())
            return {"plain": plain, "mirrored": mirrored}

        return _pair(self._kept({**self.settings("trunk"), "from": self._background.data_id}, embed))

    @cached_property
    def components(self) -> PartialWhitening:
        """Principal components of the trunk as it begins, of these images and their mirror images."""
        found = PartialWhitening(self.options.components or ALL, power=0)

        def fit() -> Arrays:
            found.fit(np.concatenate(self._trunk_rows()))
            return {"mean": found.mean_, "weight": found.weight_}

        kept = self._kept({**self.settings("trunk"), "step": "components"}, fit)
        found.mean_, found.weight_ = kept["mean"], kept["weight"]
        return found

    def _trunk_rows(self) -> Pair:
        how: dict[str, Any] = {"device": self.options.device, "amp": self.options.amp}
        network = torch.nn.Sequential(BatchAugmentation(), self._network()["trunk"])
        return extract(network, self.images, mirror=True, progress=self.options.progress, **how)

    def _network(self) -> dict[str, torch.nn.Module]:
        """As it begins."""
        models = networks.build(self.options.recipe.architecture, 0, dropout=0.0)
        if self.options.init is not None:
            networks.load_imagenet(models, self.options.recipe.architecture, self.options.init)
        return models

    @cached_property
    def embedder(self) -> Embedder:
        """The library's frozen recipe over the network as it begins, fitted to these images."""
        options, size = self.options, self.options.recipe.image_size
        how: dict[str, Any] = {"device": options.device, "amp": options.amp, "progress": options.progress}
        return Embedder(self._network()["trunk"].eval(), image_size=size, mirror=self.flips, **how).fit(
            self.images_of(size)
        )

    @cached_property
    def instance_lda(self) -> InstanceLDA:
        """Learned from views of these images."""
        views = self.views(self.options.hog_size)
        rows = self.statistics.transform(views, device=self.options.device, **self._shared)
        return InstanceLDA().fit(rows, views.instances)


def _pair(found: Arrays) -> Pair:
    """Without "mirrored" both are "plain"."""
    return found["plain"], found.get("mirrored", found["plain"])


def background(frames: Any, path: Path, size: int, how: dict[str, Any]) -> HOGLDA:
    """Background statistics from a file, or fitted and written there."""
    if path.exists():
        try:
            return HOGLDA.load(path)
        except ValueError:
            pass  # damaged: fit them again
    describe = HOGLDA(image_size=size, whiten=False, normalize=False).fit_background(frames, **how)
    describe.save(path)
    return describe


def _view(pixels: torch.Tensor, augment: BatchAugmentation, flips: bool) -> torch.Tensor:
    """(3, S, S) uint8, changed at random: (3, S, S) in [0, 1]."""
    if flips and torch.rand(()) < 0.5:
        pixels = mirror(pixels)
    return (augment(pixels[None]) * augment.std + augment.mean)[0].clamp(0, 1)
