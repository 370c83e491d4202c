"""Histograms of oriented gradients of images, by scikit-image, and what generic patches say about them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .datasets import ImageList, UnreadableImageError

__all__ = ["HogGrid", "HogItems", "as_image", "block_toeplitz", "hog_batches", "stationary_statistics"]


@dataclass(frozen=True)
class HogGrid:
    """A square grid of HOG blocks, which overlap and lie one cell apart.

    Args:
        image_size: side of the images, pixels, a multiple of cell_size.
        cell_size: side of a cell, pixels.
        block_size: side of a block, cells.
        num_orientations: bins of a cell's histogram over 180 degrees.

    Raises:
        ValueError: if a value is below 1, the cells do not tile the image or a block does not fit into it.

    Example:
        >>> grid = HogGrid()
        >>> grid.side, grid.channels, grid.num_features
        (11, 36, 4356)
    """

    image_size: int = 96
    cell_size: int = 8
    block_size: int = 2
    num_orientations: int = 9

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be an integer from 1, got {value!r}")
        if self.image_size % self.cell_size:
            raise ValueError(
                f"image_size must be a multiple of cell_size, got {self.image_size} and {self.cell_size}"
            )
        if self.side < 1:
            raise ValueError(f"{self} holds no block: take a larger image_size or smaller cells or blocks")

    @property
    def side(self) -> int:
        """G, blocks along a side of the image."""
        return self.image_size // self.cell_size - self.block_size + 1

    @property
    def channels(self) -> int:
        """C, values of one block."""
        return self.block_size**2 * self.num_orientations

    @property
    def num_features(self) -> int:
        """D = G * G * C."""
        return self.side**2 * self.channels

    def describe(self, image: np.ndarray) -> np.ndarray:
        """The HOG of one image.

        Args:
            image: (image_size, image_size) or (image_size, image_size, 3) real numbers, usually 0..255. At
                each pixel the channel with the largest gradient counts.

        Returns:
            (D,) float32, in the order row, column, channel.
        """
        from skimage.feature import hog

        blocks = hog(
            image.astype(np.float32, copy=False),
            orientations=self.num_orientations,
            pixels_per_cell=(self.cell_size, self.cell_size),
            cells_per_block=(self.block_size, self.block_size),
            feature_vector=False,
            channel_axis=-1 if image.ndim == 3 else None,
        )
        return np.asarray(blocks, np.float32).ravel()


class HogItems(Dataset[np.ndarray]):
    """HOGs of images, or of random square patches of them.

    Args:
        images: a dataset, sequence or array of images, see `as_image`; strings are paths.
        grid: what to compute.
        mirror: also of the mirrored images.
        patches: (P, 5) float64 or None: whole images. Rows are image index, side as a share of the image's
            shorter side, left and top as shares of what is free, and mirrored (0 or 1).

    An item is (1, D), or (2, D) with mirror: the image itself, then its mirror image.
    """

    def __init__(
        self, images: Any, grid: HogGrid, mirror: bool = False, patches: np.ndarray | None = None
    ) -> None:
        if (
            isinstance(images, str | os.PathLike)
            or not hasattr(images, "__getitem__")
            or not hasattr(images, "__len__")
        ):
            raise TypeError(
                f"images must be a dataset or a sequence of images or paths, got {type(images).__qualname__}"
            )
        if len(images) == 0:
            raise ValueError("images must hold at least one image, got none")
        if isinstance(images, list | tuple) and all(isinstance(image, str | os.PathLike) for image in images):
            images = ImageList(images)
        self.images, self.grid, self.mirror, self.patches = images, grid, mirror, patches

    def __len__(self) -> int:
        return len(self.images) if self.patches is None else len(self.patches)

    def __getitem__(self, index: int) -> np.ndarray:
        which = index if self.patches is None else int(self.patches[index, 0])
        try:
            image = as_image(self.images[which], f"images[{which}]")
            pixels = self._pixels(image, None if self.patches is None else self.patches[index])
        except UnreadableImageError:
            raise
        except (OSError, SyntaxError, EOFError) as error:  # what decoders raise
            raise UnreadableImageError(f"cannot read images[{which}]: {error}") from error
        views = [pixels, pixels[:, ::-1]] if self.mirror else [pixels]
        return np.stack([self.grid.describe(view) for view in views])

    def _pixels(self, image: Any, patch: np.ndarray | None) -> np.ndarray:
        from PIL import Image

        size = (self.grid.image_size, self.grid.image_size)
        if patch is None:
            return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BILINEAR))
        width, height = image.size
        side = min(width, height) * patch[1]
        left, top = (width - side) * patch[2], (height - side) * patch[3]
        image = image.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
        return np.asarray(image)[:, ::-1] if patch[4] else np.asarray(image)


def hog_batches(
    items: HogItems,
    batch_size: int,
    num_workers: int,
    progress: bool,
    what: str,
    rows: range | None = None,
) -> Iterator[np.ndarray]:
    """(B, views, D) float32 after (B, views, D), of all items or some, in order, by worker processes."""
    from tqdm.auto import tqdm

    rows = range(len(items)) if rows is None else rows
    loader = DataLoader(
        items,
        batch_size=batch_size,
        sampler=rows,
        num_workers=num_workers,
        collate_fn=np.stack,
        generator=torch.Generator(),  # a loader seeds its workers from the global one otherwise
    )
    with tqdm(total=len(rows), desc=what, unit="image", disable=not progress) as bar:
        for batch in loader:
            yield batch
            bar.update(len(batch))


def as_image(item: Any, name: str) -> Any:
    """Bring whatever a dataset yields into an 8-bit PIL image.

    Args:
        item: a PIL image; a path; an array (H, W), (H, W, 1) or (H, W, 3) or a tensor (H, W), (1, H, W) or
            (3, H, W), uint8 or bool, or floating in [0, 1]; or a tuple or list that starts with one of these.
        name: what the errors call it.

    Returns:
        A PIL image of mode "L" or "RGB".

    Raises:
        TypeError: if it is none of these.
        ValueError: for another shape or values outside [0, 1] (NaN too).
        UnreadableImageError: if its file is missing, truncated or no image.

    Example:
        >>> as_image(np.ones((4, 6)), "it").size
        (6, 4)
    """
    from PIL import Image

    if isinstance(item, tuple | list) and item:
        item = item[0]
    if isinstance(item, str | os.PathLike):
        item = ImageList([item])[0]
    if isinstance(item, Image.Image):
        return item if item.mode in ("L", "RGB") else item.convert("L" if item.mode == "1" else "RGB")
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu().numpy()
        item = item.transpose(1, 2, 0) if item.ndim == 3 else item
    if not isinstance(item, np.ndarray) or item.dtype.kind not in "buif":
        raise TypeError(
            f"{name} must be a PIL image, an array, a tensor or a path, got {type(item).__qualname__}"
        )
    if item.ndim == 3 and item.shape[2] == 1:
        item = item[:, :, 0]
    if item.ndim not in (2, 3) or (item.ndim == 3 and item.shape[2] != 3) or item.size == 0:
        raise ValueError(f"{name} must be grey or have 3 channels, got the array shape {item.shape}")
    if item.dtype.kind == "b":
        item = item.astype(np.uint8) * 255
    elif item.dtype != np.uint8:
        low, high = item.min(), item.max()
        if item.dtype.kind != "f" or not (low >= 0 and high <= 1):
            raise ValueError(
                f"{name} must be uint8 or floating in [0, 1], got {item.dtype} in [{low}, {high}]: "
                "leave normalisation out of the transforms"
            )
        item = np.round(item * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(item))


def stationary_statistics(rows: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of a block, and covariance of two blocks as a function of their offset alone.

    The covariance at an offset is the sum over the pairs of positions that lie so far apart, divided by the
    number of all positions. That fades it out towards the largest offsets, and makes the covariance of the
    whole grid, put together from it, positive semi-definite.

    Args:
        rows: (P, G * G * C) float32, HOGs of patches; overwritten.
        side: G.

    Returns:
        (C,) float64 mean and (2 G - 1, 2 G - 1, C, C) float64 covariance: [G - 1 + dy, G - 1 + dx, i, j] is
        that of channel i at a position and channel j at dy rows below and dx columns right of it.
    """
    blocks = rows.reshape(len(rows), side**2, -1)
    mean = blocks.mean((0, 1), dtype=np.float64)
    blocks -= mean.astype(np.float32)
    channels, num = len(mean), rows.shape[1]
    products = np.zeros((num, num))
    for start in range(0, len(rows), 1024):
        part = torch.from_numpy(rows[start : start + 1024])
        products += (part.T @ part).numpy()
    pairs = (products / len(rows)).reshape(side, side, channels, side, side, channels)
    covariance = np.zeros((2 * side - 1, 2 * side - 1, channels, channels))
    for y in range(side):
        for x in range(side):  # position (y, x) with every other one
            here = pairs[y, x].transpose(1, 2, 0, 3)  # (G, G, C, C)
            covariance[side - 1 - y : 2 * side - 1 - y, side - 1 - x : 2 * side - 1 - x] += here
    return mean, covariance / side**2


def block_toeplitz(covariance: np.ndarray) -> np.ndarray:
    """Put the covariance of a whole grid together.

    Args:
        covariance: (2 G - 1, 2 G - 1, C, C), of `stationary_statistics`.

    Returns:
        (D, D) float64 symmetric, D = G * G * C.
    """
    side, channels = (len(covariance) + 1) // 2, covariance.shape[2]
    offset = np.arange(side)[None, :] - np.arange(side)[:, None] + side - 1  # (from, to)
    whole = covariance[offset[:, None, :, None], offset[None, :, None, :]]  # (y, x, y', x', C, C)
    return np.ascontiguousarray(whole.transpose(0, 1, 4, 2, 3, 5)).reshape(side**2 * channels, -1)
