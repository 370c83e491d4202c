"""Sets of images, of others or in memory; each has a `data_id`, the identity of its content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.data import Dataset

from benchmarks.data.files import check_index, files_id
from pml_posets.data.cache import digest
from pml_posets.data.datasets import ImageList


class Chosen(Dataset[Any]):
    """Some of a set of images, by their indices."""

    def __init__(self, images: Any, indices: npt.NDArray[np.int64]) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.images[int(self.indices[index])]

    @property
    def data_id(self) -> str:
        """A digest that changes with the images or the choice."""
        return str(digest(self.images.data_id, np.asarray(self.indices)))


class ImageFiles(ImageList):
    """Whole images."""

    @property
    def data_id(self) -> str:
        """A digest that changes with the files."""
        return files_id(self.paths)


class JoinedImages(Dataset[Any]):
    """Several sets of images, one behind the other; each has a `data_id`."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Any:
        check_index(index, len(self), "images")
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part][index - (int(self._ends[part - 1]) if part else 0)]

    @property
    def data_id(self) -> str:
        """A digest that changes with any of the parts."""
        return digest([part.data_id for part in self.parts])


class ArrayImages(Dataset[Any]):
    """Images in memory, (N, H, W, 3) uint8: item i is an RGB PIL image."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[check_index(index, len(self), "images")])

    @property
    def data_id(self) -> str:
        """A digest that changes with the pixels."""
        return str(digest(self.pixels))


class PackedDrawings(Dataset[Any]):
    """Drawings W wide, (N, H, ceil(W / 8)) uint8 by `np.packbits`: item i is an RGB PIL image."""

    def __init__(self, packed: npt.NDArray[np.uint8], width: int) -> None:
        self.packed, self.width = packed, width

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> Image.Image:
        rows = self.packed[check_index(index, len(self), "drawings")]
        ink = np.unpackbits(rows, axis=1)[:, : self.width]
        return Image.fromarray((255 * (1 - ink)).astype(np.uint8)).convert("RGB")

    @property
    def data_id(self) -> str:
        """A digest that changes with the drawings."""
        return str(digest(self.packed, self.width))
