"""Histograms of oriented gradients of images, and what generic patches say about them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from .._validation import as_count, as_device, check_option
from ..data.datasets import SeededDataset, check_dataset, read_batches
from ..data.images import UnreadableImageError, as_image, resized

__all__ = [
    "HogBackend",
    "HogGrid",
    "HogItems",
    "block_toeplitz",
    "check_window",
    "cholesky_factor",
    "hog_batches",
    "stationary_statistics",
    "window_weights",
]

HogBackend = Literal["torch", "skimage"]

_TINY = 1e-5  # added to the length of a block, as in scikit-image
_HIGHEST = 0.2  # of a value in a block of unit length
_ON_EDGE = 2e-6  # bins: a direction on the edge of two is the upper one's, whatever rounding says
_LEAST_RIDGE = 1e-6
_BILINEAR = 2  # PIL's number of it
_CHUNK = 2**19  # pixels of all channels held at once: on a CPU they fit its cache


@dataclass(frozen=True)
class HogGrid:
    """A square grid of HOG blocks, which overlap and lie one cell apart.

    Raises:
        TypeError, ValueError: if a value is no integer from 1, or cells or blocks do not fit into the image.

    Example:
        >>> grid = HogGrid()
        >>> grid.side, grid.channels, grid.num_features
        (11, 36, 4356)
    """

    image_size: int = 96  # side of the images, pixels, a multiple of cell_size
    cell_size: int = 8  # side of a cell, pixels
    block_size: int = 2  # side of a block, cells
    num_orientations: int = 9  # bins of a cell's histogram over 180 degrees

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            as_count(value, name)
        if self.image_size % self.cell_size:
            raise ValueError(
                f"image_size must be a multiple of cell_size, got {self.image_size} and {self.cell_size}"
            )
        if self.side < 1:
            raise ValueError(f"{self} holds no block: take a larger image_size or smaller cells or blocks")

    @property
    def centers(self) -> np.ndarray:
        """(G,) of the blocks, as parts of the image's side."""
        return (np.arange(self.side) + self.block_size / 2) * self.cell_size / self.image_size

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

    def describe(
        self, images: np.ndarray, *, backend: HogBackend = "torch", device: str | torch.device = "cpu"
    ) -> np.ndarray:
        """The HOGs of some images.

        Args:
            images: (B, image_size, image_size, channels) uint8. At each pixel the channel with the largest
                gradient counts.
            backend: "torch" (default), a batch at a time, or "skimage", by scikit-image, an image at a time:
                the reference, six to eight times slower on one core. They agree to 1e-6.
            device: of torch. Default "cpu".

        Returns:
            (B, D) float32, in the order row, column, channel of the block.
        """
        if images.ndim != 4 or images.shape[1:3] != 2 * (self.image_size,) or images.dtype != np.uint8:
            raise ValueError(
                f"images must be (B, {self.image_size}, {self.image_size}, channels) uint8, "
                f"got {images.shape} {images.dtype}"
            )
        check_option(backend, "backend", HogBackend)
        rows = np.empty((len(images), self.num_features), np.float32)
        if backend == "skimage":
            from skimage.feature import hog

            cells, blocks = (self.cell_size,) * 2, (self.block_size,) * 2
            for row, image in zip(rows, images, strict=True):
                row[:] = hog(image.astype(np.float32), self.num_orientations, cells, blocks, channel_axis=-1)
            return rows
        device = as_device(device)
        step = max(1, (_CHUNK if device.type == "cpu" else 128 * _CHUNK) // max(1, images[0:1].size))
        for start in range(0, len(images), step):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + step])).to(device)
            rows[start : start + step] = self.describe_tensor(part.permute(0, 3, 1, 2).float()).cpu().numpy()
        return rows

    def describe_tensor(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, H) float32 to (B, D)."""
        across, down = torch.zeros_like(pixels), torch.zeros_like(pixels)
        torch.sub(pixels[..., 2:], pixels[..., :-2], out=across[..., 1:-1])
        torch.sub(pixels[..., 2:, :], pixels[..., :-2, :], out=down[..., 1:-1, :])
        squares = across.square() + down.square()
        square, x, y = squares[:, 0], across[:, 0], down[:, 0]
        for channel in range(1, pixels.shape[1]):
            more = squares[:, channel] > square
            square = torch.where(more, squares[:, channel], square)
            x, y = torch.where(more, across[:, channel], x), torch.where(more, down[:, channel], y)
        # Directions count up to their sign: in [0, 180) degrees.
        x = torch.where((y < 0) | ((y == 0) & (x < 0)), -x, x)
        angle = torch.atan2(y.abs(), x).mul_(self.num_orientations / math.pi).add_(_ON_EDGE)
        position = torch.arange(self.image_size, device=pixels.device) // self.cell_size
        num_cells = self.image_size // self.cell_size
        cell = (position[:, None] * num_cells + position) * self.num_orientations  # (H, H), of its first bin
        bins = angle.long().add_(cell).flatten(1)
        sums = pixels.new_zeros(len(pixels), num_cells**2 * self.num_orientations)
        sums.scatter_add_(1, bins, square.sqrt().flatten(1))
        cells = sums.view(-1, num_cells, num_cells, self.num_orientations) / self.cell_size**2
        blocks = cells.unfold(1, self.block_size, 1).unfold(2, self.block_size, 1)  # (B, G, G, bins, b, b)
        blocks = blocks.permute(0, 1, 2, 4, 5, 3).flatten(3)
        return _unit_blocks(_unit_blocks(blocks).clamp_(max=_HIGHEST)).flatten(1)


def check_window(window: Any) -> None:
    """Raise unless it is two numbers above 0."""
    try:
        across, down = window
        good = across > 0 and down > 0
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"window must be two numbers above 0, (x, y), got {window!r}")


def window_weights(centers: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """(G, G) float32, a Gaussian about the middle at centers (G,), 0..1, of rows and columns."""
    across, down = (np.exp(-0.5 * ((centers - 0.5) / spread) ** 2) for spread in window)
    return np.outer(down, across).astype(np.float32)


def _unit_blocks(blocks: torch.Tensor) -> torch.Tensor:
    return blocks / (blocks.square().sum(-1, keepdim=True) + _TINY**2).sqrt_()


class HogItems(Dataset[np.ndarray]):
    """Pixels of images, or of random square patches of them, in the size that HOG wants.

    An item is (image_size, image_size, 3) uint8; the channels of a gray image are equal. Random transforms
    draw the same for an item each time.

    Args:
        images: a dataset, sequence or array of images, see `pml_posets.data.as_image`; strings are paths.
        image_size: side of the result, pixels.
        patches: (P, 5) float64 or None: whole images. Rows are image index, side as a share of the image's
            shorter side, left and top as shares of what is free, and mirrored (0 or 1).
    """

    def __init__(self, images: Any, image_size: int, patches: np.ndarray | None = None) -> None:
        if isinstance(images, str | os.PathLike):
            raise TypeError(
                f"images must be a dataset or a sequence of images or paths, got {type(images).__qualname__}"
            )
        check_dataset(images, "images")
        self.images, self.image_size, self.patches = SeededDataset(images), image_size, patches

    def __len__(self) -> int:
        return len(self.images) if self.patches is None else len(self.patches)

    def __getitem__(self, index: int) -> np.ndarray:
        patch = None if self.patches is None else self.patches[index]
        which, size = index if patch is None else int(patch[0]), (self.image_size, self.image_size)
        try:
            image = as_image(self.images[which], f"images[{which}]").convert("RGB")
        except UnreadableImageError:
            raise
        except (OSError, SyntaxError, EOFError) as error:  # what decoders raise
            raise UnreadableImageError(f"cannot read images[{which}]: {error}") from error
        if patch is None:
            return np.asarray(resized(image, size))
        side = min(image.size) * patch[1]
        left, top = (image.width - side) * patch[2], (image.height - side) * patch[3]
        image = image.resize(size, _BILINEAR, box=(left, top, left + side, top + side))
        return np.asarray(image)[:, ::-1] if patch[4] else np.asarray(image)


def hog_batches(
    items: HogItems,
    grid: HogGrid,
    rows: range | None = None,
    *,
    mirror: bool = False,
    backend: HogBackend = "torch",
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
    what: str = "HOG",
) -> Iterator[list[np.ndarray]]:
    """HOGs of all items or some, in order, a batch at a time: (B, D) float32 of each view.

    Views are the image and, with mirror, its mirror image. Worker processes read and resize.
    """
    rows = range(len(items)) if rows is None else rows
    for batch in read_batches(items, rows, np.stack, batch_size, num_workers, what, progress):
        views = [batch, batch[:, :, ::-1]] if mirror else [batch]
        yield [grid.describe(view, backend=backend, device=device) for view in views]


def stationary_statistics(rows: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of a block, and covariance of two blocks as a function of their offset alone.

    The covariance at an offset is the sum over the pairs of positions that lie so far apart, divided by the
    number of all positions. That fades it out towards the largest offsets, and makes the covariance of the
    whole grid, put together from it, positive semi-definite. (P, G * G * C) HOGs of patches, overwritten, to
    (C,) mean and (2 G - 1, 2 G - 1, C, C) covariance: [G - 1 + dy, G - 1 + dx, i, j] is that of channel i at
    a position and channel j at dy rows below and dx columns right of it.
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
            from_here = pairs[y, x].transpose(1, 2, 0, 3)  # (G, G, C, C)
            covariance[side - 1 - y : 2 * side - 1 - y, side - 1 - x : 2 * side - 1 - x] += from_here
    return mean, covariance / side**2


def block_toeplitz(covariance: np.ndarray) -> np.ndarray:
    """The covariance (D, D) of a whole grid, D = G * G * C, from `stationary_statistics`."""
    side, channels = (len(covariance) + 1) // 2, covariance.shape[2]
    offset = np.arange(side)[None, :] - np.arange(side)[:, None] + side - 1  # (from, to)
    whole = covariance[offset[:, None, :, None], offset[None, :, None, :]]  # (y, x, y', x', C, C)
    return np.ascontiguousarray(whole.transpose(0, 1, 4, 2, 3, 5)).reshape(side**2 * channels, -1)


def cholesky_factor(covariance: np.ndarray, ridge: float) -> tuple[float, torch.Tensor]:
    """L (D, D) of a whole grid's covariance, with `ridge` times its mean eigenvalue on its diagonal.

    The ridge is doubled until the matrix is positive definite; the one in use is returned first.
    """
    whole = torch.from_numpy(block_toeplitz(covariance))
    mean_eigenvalue = float(whole.diagonal().mean())
    ridge, added = max(ridge, _LEAST_RIDGE), 0.0
    while True:
        whole.diagonal().add_((ridge - added) * mean_eigenvalue)
        factor, failed = torch.linalg.cholesky_ex(whole)
        if not failed:
            return ridge, factor.float()
        added, ridge = ridge, 2 * ridge
