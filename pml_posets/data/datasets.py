"""Datasets whose samples know their own index: the identity that features, posets and losses share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset

from .._random import derive_seeds, preserved_randomness, seed_everything
from .._validation import as_count

__all__ = [
    "ImageList",
    "IndexedDataset",
    "UnreadableImageError",
    "WithMirrorImages",
    "WithViews",
    "image_files",
    "mirror",
]

SampleKey: TypeAlias = "int | tuple[int, int]"
Flips: TypeAlias = "np.ndarray | torch.Tensor | Sequence[bool] | Callable[[int], bool] | None"

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class UnreadableImageError(OSError):
    """An image file that is missing, truncated or no image; the message names it."""


def mirror(image: Any) -> Any:
    """The image mirrored left to right.

    Args:
        image: a tensor (..., H, W), an array (H, W) or (H, W, channels), a PIL image, or a tuple or list of
            these (several views of one sample).

    Returns:
        The same kind of thing, a copy.

    Raises:
        TypeError: for anything else.

    Example:
        >>> mirror(torch.tensor([[1, 2, 3]])).tolist()
        [[3, 2, 1]]
    """
    if isinstance(image, torch.Tensor) and image.ndim >= 2:
        return image.flip(-1)
    if isinstance(image, np.ndarray) and image.ndim >= 2:
        return np.ascontiguousarray(image[:, ::-1])
    if isinstance(image, (tuple, list)):
        return type(image)(mirror(view) for view in image)
    if hasattr(image, "transpose") and hasattr(image, "getbands"):  # PIL, not imported for this
        from PIL import Image

        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    raise TypeError(f"an image must be a tensor, an array or a PIL image to be mirrored, got {_kind(image)}")


class IndexedDataset(Dataset[tuple[Any, int]]):
    """Yields (image, index) from any dataset of images, so that the index travels in PML's labels channel.

    A key is an index, or a pair (index, seed). With a seed, the global generators of torch, numpy and random
    are seeded before the sample is loaded and put back afterwards: its augmentation is then a function of the
    seed alone, whatever the number of workers and whatever was drawn before. A dataset that loads a whole
    batch at once (by `__getitems__`) is asked to, with the seed of the batch's first sample.

    Args:
        dataset: yields an image, or a tuple or list whose first element is the image (labels are left out).
        flips: which samples to mirror, after the dataset's own transforms: (N,) booleans, a function
            index -> bool, or None (default): none. The attribute may be replaced at any time; worker
            processes see the change when the next iterator over the data loader starts.

    Raises:
        TypeError: if the dataset has no length or flips are no booleans; when a sample is read, if it is a
            dict (wrap the dataset so that the image comes first).
        ValueError: if there are no samples, or not as many flips as samples.
        IndexError: when a sample is read, for an index outside 0..N-1.

    Source: the flip flags are those of the authors' public code (CVPR 2017 and CliqueCNN).
    Differs from the paper: its text does not speak of flips.

    Example:
        >>> images = IndexedDataset([(torch.zeros(3, 4, 4), "a label"), (torch.ones(3, 4, 4), "another")])
        >>> image, index = images[1]
        >>> index, image.mean().item()
        (1, 1.0)
    """

    def __init__(self, dataset: Any, flips: Flips = None) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(f"dataset must have a length and items by index, got {_kind(dataset)}")
        if len(dataset) == 0:
            raise ValueError("dataset must hold at least one sample, got none")
        self.dataset = dataset
        self.flips = flips

    @property
    def flips(self) -> Any:
        """(N,) bool, a function index -> bool, or None."""
        return self._flips

    @flips.setter
    def flips(self, flips: Flips) -> None:
        if flips is not None and not callable(flips):
            flips = np.asarray(flips)
            if flips.dtype != np.bool_:
                raise TypeError(f"flips must be booleans, got dtype {flips.dtype}")
            if flips.shape != (len(self),):
                raise ValueError(
                    f"flips must have shape ({len(self)},) to match the dataset, got {flips.shape}: "
                    "was the dataset filtered after the features were extracted?"
                )
        self._flips = flips

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> tuple[Any, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey]) -> list[tuple[Any, int]]:
        """A batch at once, as torch's data loader asks for it: the generators are put back only once."""
        indices = [int(key[0] if isinstance(key, (tuple, list)) else key) for key in keys]
        seeds = [key[1] if isinstance(key, (tuple, list)) else None for key in keys]
        if outside := [index for index in (min(indices), max(indices)) if not 0 <= index < len(self)]:
            raise IndexError(f"index must be in 0..{len(self) - 1}, got {outside[0]}")
        if seeds == [None] * len(seeds):
            return list(zip(self._images(indices), indices, strict=True))
        with preserved_randomness(accelerators=False):
            return list(zip(self._images(indices, seeds), indices, strict=True))

    def _images(self, indices: list[int], seeds: Sequence[int | None] = ()) -> Iterator[Any]:
        """The images, each after its seed if there are any."""
        at_once = getattr(self.dataset, "__getitems__", None)
        if at_once is not None and len(indices) > 1:
            if seeds and seeds[0] is not None:
                seed_everything(seeds[0], accelerators=False)
            loaded = at_once(indices)
            yield from (self._finish(sample, index) for sample, index in zip(loaded, indices, strict=True))
            return
        for i, index in enumerate(indices):
            if seeds and (seed := seeds[i]) is not None:
                seed_everything(seed, accelerators=False)
            yield self._finish(self.dataset[index], index)

    def _finish(self, image: Any, index: int) -> Any:
        """The image of a sample, mirrored if it is to be."""
        if isinstance(image, dict):
            raise TypeError(
                f"a sample must be an image or (image, ...), got a dict with the keys {sorted(image)}: "
                "wrap the dataset so that the image comes first"
            )
        if isinstance(image, (tuple, list)):
            image = image[0]
        flips = self._flips
        if flips is not None and (flips(index) if callable(flips) else flips[index]):
            image = mirror(image)
        return image


class WithMirrorImages(Dataset[Any]):
    """A dataset and its mirror images behind it: item N + i is item i, mirrored.

    With it the mirror image of a sample is a sample of its own, with its own class and poset, and training
    sees both. Stack the features to match: np.concatenate([features, mirrored]), and the sources twice, so
    that a sample and its mirror image never share a class.

    Args:
        dataset: yields an image, or a tuple or list that starts with one.

    Source: none, an addition. Differs from the paper: there a sample has one orientation, that of its class.

    Example:
        >>> both = WithMirrorImages([torch.tensor([[1, 2]]), torch.tensor([[3, 4]])])
        >>> len(both), both[3].tolist()
        (4, [[4, 3]])
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 2 * len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        length = len(self.dataset)
        if not 0 <= index < 2 * length:
            raise IndexError(f"items are 0 to {2 * length - 1}, asked for {index}")
        item = self.dataset[index % length]
        if index < length:
            return item
        return (mirror(item[0]), *item[1:]) if isinstance(item, (tuple, list)) else mirror(item)


class WithViews(Dataset[Any]):
    """Several views of each image, changed at random: item V n + v is view v of image n.

    A view is a function of (seed, n, v) alone, whoever asks for it: the views of a run can be had again.

    Args:
        dataset: yields an image, or a tuple or list that starts with one.
        transform: image -> image, at random by the global generators of torch, numpy or random, as those of
            torchvision are.
        num_views: V, from 1. Default 8.
        seed: from 0. Default 0.

    Attributes:
        instances: (V N,) int64, the image that each item is a view of.

    Source: none, an addition. Differs from the paper: it is not in it.

    Example:
        >>> views = WithViews([torch.zeros(3), torch.ones(3)], lambda x: x + torch.rand(1), num_views=2)
        >>> len(views), views.instances.tolist(), bool((views[3] == views[3]).all())
        (4, [0, 0, 1, 1], True)
    """

    def __init__(
        self, dataset: Any, transform: Callable[[Any], Any], num_views: int = 8, seed: int = 0
    ) -> None:
        self.dataset, self.transform = dataset, transform
        self.num_views, self.seed = as_count(num_views, "num_views"), as_count(seed, "seed", 0)
        self.instances = np.arange(len(dataset)).repeat(self.num_views)

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"items are 0 to {len(self) - 1}, asked for {index}")
        which, view = divmod(int(index), self.num_views)
        item = self.dataset[which]
        image = item[0] if isinstance(item, tuple | list) else item
        with preserved_randomness(accelerators=False):
            seed_everything(derive_seeds(self.seed, which, view)[0], accelerators=False)
            return self.transform(image)


class ImageList(Dataset[Any]):
    """Images by their paths, in RGB, without labels or folders of classes.

    Args:
        paths: image files; their order is the order of the samples.
        transform: applied to each PIL image (RGB); None (default): the PIL image itself.
        skip_unreadable: False (default): an unreadable file raises when it is read. True: every file is
            decoded once now (in threads) and the unreadable ones are left out; indices, features and labels
            are then those of the remaining `paths`.
        num_threads: for that check. Default: one a core.

    Attributes:
        paths: list of Path, those that are in the dataset.
        unreadable: list of (path, reason), those that were left out.

    Raises:
        ValueError: if there are no paths, or none is readable.
        UnreadableImageError: when a sample is read, if its file is missing, truncated or no image.

    Example:
        >>> import tempfile, PIL.Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> PIL.Image.new("RGB", (8, 8)).save(folder / "a.png")
        >>> _ = (folder / "b.png").write_bytes(b"half an image")
        >>> images = ImageList(image_files(folder), skip_unreadable=True)
        >>> len(images), images.unreadable[0][0].name
        (1, 'b.png')
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]],
        transform: Callable[[Any], Any] | None = None,
        *,
        skip_unreadable: bool = False,
        num_threads: int | None = None,
    ) -> None:
        if isinstance(paths, (str, os.PathLike)):
            raise TypeError(f"paths must be a list of files, got one path {paths}: use image_files(folder)")
        self.paths = [Path(path) for path in paths]
        self.transform = transform
        self.unreadable: list[tuple[Path, str]] = []
        if not self.paths:
            raise ValueError("paths must hold at least one image file, got none")
        if skip_unreadable:
            with ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
                reasons = list(pool.map(_reason_unreadable, self.paths))
            pairs = list(zip(self.paths, reasons, strict=True))
            self.unreadable = [(path, reason) for path, reason in pairs if reason is not None]
            self.paths = [path for path, reason in pairs if reason is None]
            if not self.paths:
                raise ValueError(f"none of {len(pairs)} images is readable: {self.unreadable[0][1]}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        image = _read(self.paths[index])
        return image if self.transform is None else self.transform(image)


def image_files(folder: str | os.PathLike[str], suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Image files under a folder and its subfolders, sorted by path.

    Args:
        folder: where to look.
        suffixes: endings that count, in lower case with their dot; files are compared in lower case.

    Returns:
        The paths, at least one.

    Raises:
        NotADirectoryError: if there is no such folder.
        ValueError: if it holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not found:
        raise ValueError(f"{folder} holds no image (looked for {', '.join(suffixes)})")
    return found


def _read(path: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # decoders raise anything: SyntaxError, struct.error, EOFError, ...
        raise UnreadableImageError(f"cannot read the image {path}: {error}") from error


def _reason_unreadable(path: Path) -> str | None:
    try:
        _read(path)
    except UnreadableImageError as error:
        return str(error)
    return None


def _kind(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
