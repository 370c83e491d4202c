"""From photos to embeddings in one object: learned without labels or training, saved and loaded whole."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import nn
from torch.utils.data import Subset

from ._io import read_npz, write_npz
from ._random import derive_seeds, seeded
from ._validation import as_count, as_flag, as_real, check_module, unit_rows
from .data.augmentation import BatchAugmentation
from .data.datasets import check_dataset
from .data.identity import digest, weights_digest
from .data.image_list import ImageList, image_files
from .data.images import per_color
from .evaluation.label_free import LabelFreeScore, label_free_score
from .features.hog import HogGrid, HogItems, hog_batches
from .features.instance_lda import InstanceLDA
from .features.neighbor_whitening import NeighborWhitening
from .features.network import extract
from .features.pooled import LayerOutputs, PartialWhitening, choose_layers

__all__ = ["Embedder"]

_FORMAT = 1
_HOG_SIZE, _HOG_IMAGES, _HOG_COMPONENTS = 96, 2000, 128
_NETWORK_SIZE, _NETWORK_IMAGES, _LAYER_COMPONENTS = 224, 5000, 256
_SETTINGS = ("image_size", "num_components", "mirror", "whitening", "neighbors", "mean", "std")


@dataclass(eq=False, repr=False)
class Embedder(BaseEstimator):
    """Embeddings of photos for search, clustering and near-duplicates, from unlabeled photos alone.

    Without a network: HOG, then `InstanceLDA` of randomly changed views of the photos, half of them mirrored.
    It needs no download and no training. With a pretrained network: the pooled outputs of several of its
    layers, each centered, rotated to its principal directions, partly whitened and scaled to unit length;
    then concatenated, so that squared distances of the layers add. Middle layers add details that the last
    one has dropped. The network is not trained. The last step of both, `features.NeighborWhitening`,
    shrinks the directions in which mutual nearest neighbors differ.

    Args:
        network: a module (B, 3, S, S) -> anything, pretrained. It is used in evaluation mode. Default None:
            HOG.
        layers: names of its submodules (as in `named_modules`) whose outputs are used: maps (B, C, H, W),
            tokens (B, T, C) or vectors (B, C). Default None: `features.choose_layers` picks four blocks
            from the last third of the network, and its last maps.
        image_size: S, photos are resized to squares of this side, pixels. Default None: 96 for HOG, 224 for
            a network.
        num_components: columns of the embedding for HOG, at most; of each layer for a network, at most.
            Default None: 128 for HOG, 256 for a layer.
        num_images: photos to learn from, drawn at random, at most. Default None: 2,000 for HOG (eight views
            of each), 5,000 for a network.
        num_views: views of each photo that HOG learns from, from 2. Default 8.
        mirror: a photo and its mirror image show the same thing. HOG: half of the views are mirrored.
            Network: features are averaged over both, which takes twice the time. Default True.
        whitening: exponent p of the network's whitening, in 0..1: principal coordinates are divided by their
            standard deviation to the power p; 0: rotated only, 1: full whitening. Default 0.75.
        neighbors: how many nearest neighbors of a photo the last step learns from; 0: without it. Default 5.
        mean, std: of the three channels, for pixels in [0, 1], that the network was trained with. Default:
            those of ImageNet.
        batch_size: photos at once, from 1. Default 64.
        num_workers: processes that read photos. Default 0: this one.
        device: of the network. Default None: where it is.
        amp: the network's precision, as for `features.extract`. On many CPUs torch.bfloat16 takes a third of
            the time. Default True: float16 on a GPU, none on a CPU.
        random_state: of all that is drawn, from 0. Default 0.
        progress: show progress bars. Default False.

    Attributes:
        layers_: names of the layers in use; empty for HOG.
        num_features_: D, columns of the embedding. Both are there after `fit`.

    Raises:
        TypeError, ValueError: at `fit`, for an argument that is wrong, or fewer than three photos.

    Example:
        >>> from PIL import Image
        >>> rng = np.random.default_rng(0)
        >>> photos = [Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(12)]
        >>> embedder = Embedder(image_size=32).fit(photos)
        >>> embedder.transform(photos[:5]).shape
        (5, 11)
    """

    network: nn.Module | None = None
    _: KW_ONLY
    layers: Sequence[str] | None = None
    image_size: int | None = None
    num_components: int | None = None
    num_images: int | None = None
    num_views: int = 8
    mirror: bool = True
    whitening: float = 0.75
    neighbors: int = 5
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    batch_size: int = 64
    num_workers: int = 0
    device: str | torch.device | None = None
    amp: bool | torch.dtype = True
    random_state: int = 0
    progress: bool = False

    def fit(self, images: Any, y: object = None) -> Embedder:
        """Learn the embedding from photos.

        Args:
            images: a folder (searched with its subfolders), or a dataset or list of PIL images, paths,
                arrays (H, W, 3) or tensors (3, H, W), or tuples that start with one.
            y: ignored.

        Returns:
            self.

        Raises:
            UnreadableImageError: for a broken photo; the message names it. To leave broken ones out, give
                `ImageList(image_files(folder), skip_unreadable=True)`.
        """
        seed = as_count(self.random_state, "random_state", 0)
        check_module(self.network, "network", optional=True)
        for name in ("mean", "std"):
            per_color(getattr(self, name), name, positive=name == "std")
        as_flag(self.mirror, "mirror")
        as_real(self.whitening, "whitening", low=0, high=1)
        as_count(self.num_views, "num_views", 2)
        neighbors = as_count(self.neighbors, "neighbors", 0)
        limit = _given(self.num_images, _HOG_IMAGES if self.network is None else _NETWORK_IMAGES)
        photos = self._photos(images)
        order = np.random.default_rng(seed).permutation(len(photos))[: as_count(limit, "num_images", 3)]
        if len(order) < 3:
            raise ValueError(f"an embedding is learned from three photos at least, got {len(order)}")
        if self.network is None:
            self.layers_: list[str] = []
            pixels = self._pixels(photos, order)
            views = [
                self._describe(self._changed(pixels, seed, number), f"view {number + 1}")[0]
                for number in range(self.num_views)
            ]
            lda = InstanceLDA(_given(self.num_components, _HOG_COMPONENTS), random_state=seed)
            lda.fit(np.concatenate(views), np.tile(np.arange(len(order)), len(views)))
            steps = [(np.asarray(lda.mean_), np.asarray(lda.weight_))]
            described = self._describe(pixels, "photos to learn from") if neighbors else []
        else:
            self.layers_ = list(self.layers or choose_layers(self.network, self.side))
            whitening = PartialWhitening(_given(self.num_components, _LAYER_COMPONENTS), self.whitening)
            steps = []
            described = self._describe(Subset(photos, order.tolist()), "photos to learn from")
            for rows in described:
                whitening.fit(rows)
                steps.append((whitening.mean_, whitening.weight_))
        self._set_steps(steps)
        if neighbors:
            joint = NeighborWhitening(neighbors).fit(self._project(described))
            self._steps.append((joint.mean_, joint.weight_))
        return self

    def transform(self, images: Any) -> NDArray[np.float32]:
        """Embed photos.

        Args:
            images: as for `fit`.

        Returns:
            (N, D) float32, unit rows, in the photos' order (of a folder: sorted by path).

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            UnreadableImageError: for a broken photo; the message names it.
        """
        self._check_fitted()
        return self._project(self._describe(self._photos(images), "embeddings"))

    def fit_transform(self, images: Any, y: object = None) -> NDArray[np.float32]:
        """`fit`, then `transform` of the same photos."""
        return self.fit(images).transform(images)

    def judge(self, images: Any, random_state: int = 0) -> tuple[LabelFreeScore, LabelFreeScore]:
        """Compare the embedding with the plain features that it is made from, without labels.

        Args:
            images: as for `fit`; a few hundred or more say most.
            random_state: of the changes that the photos are judged by, from 0. Default 0.

        Returns:
            The scores of the embedding and of the plain features (centered HOG, or the network's last layer
            pooled), see `pml_posets.evaluation.label_free_score`.
        """
        self._check_fitted()
        photos = self._photos(images)
        pixels = self._pixels(photos, np.arange(len(photos)))
        changed = self._changed(pixels, random_state, self.num_views)  # no view that was learned from
        described = [self._describe(pixels, "photos"), self._describe(changed, "changed photos")]
        embedded = label_free_score(*(self._project(parts) for parts in described))
        plain = [parts[-1] for parts in described]
        middle = plain[0].mean(0) if self.network is None else np.float32(0)
        return embedded, label_free_score(*(rows - middle for rows in plain))

    def digest(self) -> str:
        """What tells embedders apart: a digest of settings, network and what was learned."""
        settings = json.dumps(self._settings(), default=list)
        return digest(settings, weights_digest(self.network), self._steps)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learned and the settings to one .npz file; the network itself is not in it.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
        """
        settings = self._settings() | {"format": _FORMAT, "network": weights_digest(self.network)}
        arrays = {"settings": np.array(json.dumps(settings, default=list))}
        for number, (mean, weight) in enumerate(self._steps):
            arrays |= {f"{number}.mean": mean, f"{number}.weight": weight}
        write_npz(path, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str], network: nn.Module | None = None, **options: Any) -> Embedder:
        """Read what `save` wrote.

        Args:
            path: the file.
            network: the network that it was fitted with, with the same weights; None if it had none.
            **options: batch_size, num_workers, device, amp or progress.

        Returns:
            A fitted embedder.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, or of another network or format.
        """
        arrays = read_npz(path)
        try:
            settings = json.loads(str(arrays.pop("settings")))
        except (KeyError, ValueError):
            settings = {}
        if settings.pop("format", None) != _FORMAT:
            raise ValueError(f"{path} holds no embedder in the format that this version reads: fit it again")
        expected, layers = settings.pop("network"), settings.pop("layers")
        if expected != weights_digest(network):
            given = "no network" if network is None else "another network or other weights"
            wanted = "none" if expected is None else "one with the weights it was fitted with"
            raise ValueError(f"{path} was fitted with {wanted}, got {given}: pass it as network=")
        embedder = cls(network, **settings, **options)
        embedder.layers_ = layers
        numbers = range(len(arrays) // 2)
        embedder._set_steps([(arrays[f"{number}.mean"], arrays[f"{number}.weight"]) for number in numbers])
        return embedder

    @property
    def side(self) -> int:
        """The side that photos are resized to, pixels."""
        default = _HOG_SIZE if self.network is None else _NETWORK_SIZE
        return as_count(_given(self.image_size, default), "image_size", 8)

    def _set_steps(self, steps: list[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> None:
        """Take the mean and the weight of each step: those of the parts, then those of the whole."""
        self._steps = steps
        self._used = self._in_use()
        self.num_features_ = sum(len(weight) for _, weight in steps[: max(1, len(self.layers_))])

    def _settings(self) -> dict[str, Any]:
        """What tells a fitted embedder apart, besides its network."""
        self._check_fitted()
        return {name: getattr(self, name) for name in _SETTINGS} | {"layers": self.layers_}

    def _in_use(self) -> dict[str, Any]:
        """The settings that what was learned belongs to."""
        return {"image_size": self.side, "mirror": self.mirror, "mean": [*self.mean], "std": [*self.std]}

    def _check_fitted(self) -> None:
        if not hasattr(self, "_steps"):
            raise NotFittedError("the embedder has learned nothing yet: call fit(photos) first")
        for name, now in self._in_use().items():
            if now != (before := self._used[name]):
                raise ValueError(
                    f"{name} is {now}, but was {before} when the embedder was fitted: call fit again"
                )

    def _photos(self, images: Any) -> Any:
        if isinstance(images, str | os.PathLike):
            images = ImageList(image_files(Path(images)))
        check_dataset(images, "images")
        return images

    def _pixels(self, photos: Any, order: NDArray[np.int64]) -> torch.Tensor:
        """Some photos as they are described, (n, 3, S, S) uint8."""
        items = HogItems(photos, self.side)
        return torch.from_numpy(np.stack([items[int(i)] for i in order])).permute(0, 3, 1, 2)

    def _changed(self, pixels: torch.Tensor, seed: int, number: int) -> torch.Tensor:
        """A random view of each image, (N, 3, S, S) uint8; another one for another number."""
        augment = BatchAugmentation(scale=(0.95, 1.41), brightness=0.4).train()
        changed = torch.empty_like(pixels)
        with seeded(derive_seeds(seed, number)[0], accelerators=False):
            for start in range(0, len(pixels), 64):
                batch = pixels[start : start + 64]
                if self.mirror:
                    turned = torch.rand(len(batch), 1, 1, 1) < 0.5
                    batch = torch.where(turned, batch.flip(-1), batch)
                views = augment(batch) * augment.std + augment.mean
                changed[start : start + 64] = views.mul(255).round().clamp(0, 255).to(torch.uint8)
        return changed

    def _describe(self, photos: Any, what: str) -> list[NDArray[np.float32]]:
        """The features of each part before any projection, (N, D) each."""
        side, how = self.side, dict[str, Any](progress=self.progress)
        how["batch_size"] = as_count(self.batch_size, "batch_size")
        how["num_workers"] = as_count(self.num_workers, "num_workers", 0)
        if self.network is None:
            batches = hog_batches(HogItems(photos, side), HogGrid(side), what=what, **how)
            return [np.concatenate([batch[0] for batch in batches])]
        how |= {name: getattr(self, name) for name in ("mean", "std", "device", "amp")}
        outputs = LayerOutputs(self.network, self.layers_)
        rows = extract(outputs, photos, mirror=self.mirror, size=(side, side), normalize=False, **how)
        if isinstance(rows, tuple):
            rows = np.float32(0.5) * (rows[0] + rows[1])
        return np.split(rows, np.cumsum(outputs.widths)[:-1], axis=1)

    def _project(self, described: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        parts = [
            unit_rows((rows - mean) @ weight.T)
            for rows, (mean, weight) in zip(described, self._steps, strict=False)
        ]
        rows = np.concatenate(parts, axis=1) / np.float32(np.sqrt(len(parts)))
        for mean, weight in self._steps[len(parts) :]:
            rows = unit_rows((rows - mean) @ weight.T)
        return rows


def _given(value: int | None, default: int) -> int:
    return default if value is None else value
