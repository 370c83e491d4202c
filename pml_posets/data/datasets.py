"""Datasets whose samples know their own index: the identity that features, posets and losses share."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .._random import derive_seeds, preserved_randomness, seed_everything, seeded
from .._validation import as_count, check_shape
from .image_list import IMAGE_SUFFIXES, ImageList, image_files
from .images import UnreadableImageError, image_of, mirror, upright

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageList",
    "IndexedDataset",
    "SeededDataset",
    "UnreadableImageError",
    "WithMirrorImages",
    "WithViews",
    "check_dataset",
    "image_files",
    "mirror",
]

SampleKey: TypeAlias = "int | tuple[int, int]"
Flips: TypeAlias = "np.ndarray | torch.Tensor | Sequence[bool] | Callable[[int], bool] | None"


def check_dataset(dataset: Any, name: str = "dataset") -> int:
    """The number of samples of a map-style dataset, from 1, or an error that says what it lacks."""
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(f"{name} must have a length and items by index, got {type(dataset).__qualname__}")
    if len(dataset) == 0:
        raise ValueError(f"{name} must hold at least one sample, got none")
    return len(dataset)


def read_batches(
    items: Dataset[Any],
    rows: range,
    collate: Callable[[list[Any]], Any],
    batch_size: int,
    num_workers: int,
    what: str,
    progress: bool,
    pin_memory: bool = False,
) -> Iterator[Any]:
    """Batches of some items in order, read by worker processes, under a progress bar.

    The workers end with the iteration, by an error too: a traceback would keep them, and the garbage
    collector would wait 5 s for each.
    """
    from tqdm.auto import tqdm

    num_workers = as_count(num_workers, "num_workers", least=0)
    loader = DataLoader(
        items,
        batch_size,
        sampler=rows,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # a loader seeds its workers from the global one otherwise
    )
    batches = iter(loader)
    with tqdm(total=len(rows), desc=what, unit="image", disable=not progress) as bar:
        try:
            for batch in batches:
                yield batch
                bar.update(len(batch))
        finally:
            if num_workers:
                batches._shutdown_workers()  # type: ignore[attr-defined]  # torch has no public name for it


def as_index(key: Any, length: int) -> int:
    """A sample's number in 0..length - 1; lists, slices, floats and negative numbers are refused."""
    try:
        is_array = isinstance(key, np.ndarray | torch.Tensor) and (key.ndim or key.dtype == torch.bool)
        if isinstance(key, bool | np.bool_) or is_array:
            raise TypeError
        index = operator.index(key)
    except TypeError:
        raise TypeError(
            f"an index must be an integer, got {key!r}: a sampler that yields whole batches of indices is "
            "the DataLoader's batch_sampler="
        ) from None
    if not 0 <= index < length:
        raise IndexError(f"index must be in 0..{length - 1}, got {index}")
    return index


class _Wrapper(Dataset[Any]):
    """A dataset around another one, of the same length if nothing else is said."""

    def __init__(self, dataset: Any) -> None:
        check_dataset(dataset)
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)


class SeededDataset(_Wrapper):
    """A dataset whose random transforms draw the same for an item each time, in any process and order.

    The global generators of torch, numpy and random are seeded by (seed, index) before an item is loaded and
    put back afterwards.

    Args:
        dataset: has a length and items by index.
        seed: from 0. Default 0.

    Example:
        >>> data = SeededDataset(WithViews([torch.zeros(2)], lambda x: x + torch.rand(2), num_views=1))
        >>> bool((data[0] == data[0]).all())
        True
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        super().__init__(dataset)
        self.seed = as_count(seed, "seed", 0)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """A batch at once, as torch's data loader asks for it: the generators are put back only once."""
        items = []
        with preserved_randomness(accelerators=False):
            for index in indices:
                index = as_index(index, len(self))
                seed_everything(derive_seeds(self.seed, index)[0], accelerators=False)
                items.append(self.dataset[index])
        return items


class _Batch(list[Any]):
    """A batch that knows the seeds of its samples, for `seeded_collate`."""

    seeds: list[int]


class IndexedDataset(_Wrapper):
    """Yields (image, index) from any dataset of images, so that the index travels in PML's labels channel.

    A key is an index, or a pair (index, seed). With a seed, the global generators of torch, numpy and random
    are seeded before the sample is loaded and put back afterwards: its augmentation is then a function of the
    seed alone, whatever the number of workers, the batch and what was drawn before. Without seeds, a dataset
    that loads a whole batch at once (by `__getitems__`) is asked to.

    To learn from a part of the images wrap the part, IndexedDataset(Subset(images, chosen)): features and
    posets are those of the part. A Subset of an IndexedDataset does not take seeds.

    Args:
        dataset: yields an image, or a tuple or list whose first element is the image (labels are left out).
            PIL images become upright, 8 bits a channel, see `images.as_image`.
        flips: which samples to mirror, after the dataset's own transforms: (N,) booleans, a function
            index -> bool, or None (default): none. The attribute may be replaced; worker processes see it
            when the next iterator over the data loader starts.

    Raises:
        TypeError: for a dataset without a length, flips that are no booleans, a key that is neither an index
            nor (index, seed), or a sample that is a dict.
        ValueError: if there are no samples, or not as many flips as samples.
        IndexError: for an index outside 0..N-1.

    Source: the flip flags are those of the authors' public code; the paper does not speak of them.

    Example:
        >>> images = IndexedDataset([(torch.zeros(3, 4, 4), "a label"), (torch.ones(3, 4, 4), "another")])
        >>> image, index = images[1]
        >>> index, image.mean().item()
        (1, 1.0)
    """

    def __init__(self, dataset: Any, flips: Flips = None) -> None:
        super().__init__(dataset)
        self.flips = flips

    @property
    def flips(self) -> np.ndarray | Callable[[int], bool] | None:
        """(N,) bool, a function index -> bool, or None."""
        return self._flips

    @flips.setter
    def flips(self, flips: Flips) -> None:
        if flips is not None and not callable(flips):
            flips = np.asarray(flips)
            if flips.dtype != np.bool_:
                raise TypeError(f"flips must be booleans, got dtype {flips.dtype}")
            filtered = ": was the dataset filtered after the features were extracted?"
            check_shape(flips, "flips", (len(self),), " to match the dataset", filtered)
        self._flips: Any = flips

    def __getitem__(self, key: SampleKey) -> tuple[Any, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey]) -> list[tuple[Any, int]]:
        """A batch at once, as torch's data loader asks for it: the generators are put back only once."""
        pairs = [self._as_pair(key) for key in keys]
        if any(seed is not None for _, seed in pairs):
            batch = _Batch()
            with preserved_randomness(accelerators=False):
                for index, seed in pairs:
                    if seed is not None:
                        seed_everything(seed, accelerators=False)
                    batch.append((self._finish(self.dataset[index], index), index))
            batch.seeds = [seed or 0 for _, seed in pairs]
            return batch
        indices = [index for index, _ in pairs]
        load: Any = getattr(self.dataset, "__getitems__", None)
        alone = load is None or len(indices) == 1
        samples = (self.dataset[index] for index in indices) if alone else load(indices)
        return [(self._finish(sample, index), index) for sample, index in zip(samples, indices, strict=True)]

    def _as_pair(self, key: SampleKey) -> tuple[int, int | None]:
        if not isinstance(key, tuple):
            return as_index(key, len(self)), None
        if len(key) != 2:
            raise TypeError(f"a key must be an index or (index, seed), got {key!r}")
        return as_index(key[0], len(self)), as_count(key[1], "the seed of a key", 0)

    def _finish(self, sample: Any, index: int) -> Any:
        """The image of a sample, mirrored if it is to be."""
        if isinstance(sample, dict):
            raise TypeError(
                f"a sample must be an image or (image, ...), got a dict with the keys {sorted(sample)}: "
                "wrap the dataset so that the image comes first"
            )
        image, flips = upright(image_of(sample)), self._flips
        turned = flips(index) if callable(flips) else flips is not None and flips[index]
        return mirror(image) if turned else image


class WithMirrorImages(_Wrapper):
    """A dataset and its mirror images behind it: item N + i is item i, mirrored.

    With it the mirror image of a sample is a sample of its own, with its own class and poset; in the paper a
    sample has one orientation, that of its class. Stack the features to match: np.concatenate([features,
    mirrored]), and the sources twice, so that a sample and its mirror image never share a class.

    Args:
        dataset: yields an image, or a tuple or list that starts with one.

    Example:
        >>> both = WithMirrorImages([torch.tensor([[1, 2]]), torch.tensor([[3, 4]])])
        >>> len(both), both[3].tolist()
        (4, [[4, 3]])
    """

    def __len__(self) -> int:
        return 2 * len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        turned, index = divmod(as_index(index, len(self)), len(self.dataset))
        item, change = self.dataset[index], mirror if turned else upright
        return (change(item[0]), *item[1:]) if isinstance(item, tuple | list) else change(item)


class WithViews(_Wrapper):
    """Several views of each image, changed at random: item V n + v is view v of image n.

    A view is a function of (seed, n, v) alone, whoever asks for it: the views of a run can be had again.

    Args:
        dataset: yields an image, or a tuple or list that starts with one. PIL images become upright, 8 bits a
            channel, see `images.as_image`.
        transform: image -> image, at random by the global generators of torch, numpy or random, as those of
            torchvision are.
        num_views: V, from 1. Default 8.
        seed: from 0. Default 0.

    Attributes:
        instances: (V N,) int64, the image that each item is a view of.

    Example:
        >>> views = WithViews([torch.zeros(3), torch.ones(3)], lambda x: x + torch.rand(1), num_views=2)
        >>> len(views), views.instances.tolist(), bool((views[3] == views[3]).all())
        (4, [0, 0, 1, 1], True)
    """

    def __init__(
        self, dataset: Any, transform: Callable[[Any], Any], num_views: int = 8, seed: int = 0
    ) -> None:
        super().__init__(dataset)
        if not callable(transform):
            raise TypeError(f"transform must be a function of an image, got {transform!r}")
        self.transform = transform
        self.num_views, self.seed = as_count(num_views, "num_views"), as_count(seed, "seed", 0)
        self.instances = np.arange(len(dataset)).repeat(self.num_views)

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, index: int) -> Any:
        which, view = divmod(as_index(index, len(self)), self.num_views)
        with seeded(derive_seeds(self.seed, which, view)[0], accelerators=False):
            return self.transform(upright(image_of(self.dataset[which])))
