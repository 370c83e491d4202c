"""Sets of images, of others or in memory; each has a `data_id`, the identity of its content."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

from benchmarks.data.files import files_id
from pml_posets.data.cache import digest
from pml_posets.data.datasets import ImageList, as_index


class Chosen(Subset[Any]):
    """Some of a set of images, by their indices."""

    dataset: Any

    def __init__(self, images: Any, indices: npt.NDArray[np.int64]) -> None:
        super().__init__(images, indices.tolist())

    @property
    def data_id(self) -> str:
        """A digest that changes with the images or the choice."""
        return str(digest(self.dataset.data_id, np.asarray(self.indices)))


class ImageFiles(ImageList):
    """Whole images."""

    @property
    def data_id(self) -> str:
        """A digest that changes with the files."""
        return files_id(self.paths)


class JoinedImages(ConcatDataset[Any]):
    """Several sets of images, one behind the other; each has a `data_id`."""

    datasets: list[Any]

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(as_index(index, len(self)))

    @property
    def data_id(self) -> str:
        """A digest that changes with any of the parts."""
        return digest([part.data_id for part in self.datasets])


class ArrayImages(Dataset[Any]):
    """Images in memory, (N, H, W, 3) uint8: item i is an RGB PIL image."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[as_index(index, len(self))])

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
        rows = self.packed[as_index(index, len(self))]
        ink = np.unpackbits(rows, axis=1)[:, : self.width]
        return Image.fromarray((255 * (1 - ink)).astype(np.uint8)).convert("RGB")

    @property
    def data_id(self) -> str:
        """A digest that changes with the drawings."""
        return str(digest(self.packed, self.width))
