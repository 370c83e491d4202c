"""Decoded images of one size, in one file that is mapped into memory."""

from __future__ import annotations

import math
import operator
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .._io import atomic_write
from .._validation import as_count
from .datasets import SeededDataset, check_dataset, read_batches
from .identity import data_identity, digest, files_of
from .images import VERSION, UnreadableImageError, as_image, image_of, resized

__all__ = ["ImageStore"]

LEFT_OVER = 24 * 3600  # seconds: an unfinished file that was not written to for this long is a crash's


class ImageStore(Dataset[torch.Tensor]):
    """A dataset's images, decoded and resized once, then read from a memory-mapped file.

    Decoding an image each time it is read costs more than a small network's step. The file takes 3 N S S
    bytes. It is named after its size and the identity of the data, so that a data set that changed makes a
    new one (the old one stays until it is deleted). It appears under its name only when it is whole.

    Args:
        dataset: yields PIL images, or tuples whose first element is one. `images.as_image` says how they
            are converted; random transforms draw the same for an item each time.
        folder: where the file lies; made if missing.
        size: S, side of the square images, pixels, at least 1. Images that are not square are stretched.
        data_id: a string that identifies the data, for datasets that `identity.data_identity` refuses.
            Change it when the data change. Default None.
        num_workers: processes that decode. Default 0: this one.
        progress: show a progress bar while the file is made. Default True.

    Attributes:
        path: the file.
        shape: (N, 3, S, S).
        data_id: string that stands for these images at this size, for caches of what is made from them.

    Item i is a (3, S, S) uint8 tensor, RGB, the reader's own copy.

    Raises:
        ValueError: size below 1, or no images.
        TypeError: without data_id, if nothing says when the data change; if an item is no PIL image.
        UnreadableImageError: if an image cannot be read; the message names it.
        OSError: if the file cannot be written, with the bytes that it takes.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ImageStore([Image.new("RGB", (9, 7))] * 3, folder, size=8, progress=False)
        ...     len(store), store[1].shape
        (3, torch.Size([3, 8, 8]))
    """

    def __init__(
        self,
        dataset: Any,
        folder: str | os.PathLike[str],
        size: int,
        *,
        data_id: str | None = None,
        num_workers: int = 0,
        progress: bool = True,
    ) -> None:
        size = as_count(size, "size")
        self.shape = (check_dataset(dataset), 3, size, size)
        self.data_id = digest({"pixels": VERSION, "shape": self.shape}, data_identity(dataset, data_id))
        self.path = Path(folder) / f"images-{size}px-{self.data_id[:16]}.npy"
        images = self._open()
        if images is None:
            self._make(dataset, num_workers, progress)
            images = self._open()
        if images is None:
            raise OSError(f"{self.path} was written and cannot be read back: is the disk sound?")
        self._images = images

    def _open(self) -> np.ndarray | None:
        """The images; None if there is no file, or one that is damaged."""
        try:
            images = np.load(self.path, mmap_mode="r")
        except (FileNotFoundError, NotADirectoryError, ValueError, EOFError):
            return None
        return images.view(np.ndarray) if images.shape == self.shape and images.dtype == np.uint8 else None

    def _make(self, dataset: Any, num_workers: int, progress: bool) -> None:
        items = _Resized(dataset, self.shape[-1])
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        num_bytes = math.prod(self.shape)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._clear_left_over()
            if (free := shutil.disk_usage(self.path.parent).free) < num_bytes:
                raise OSError(f"there are {free:,} bytes free")
            # Written, not mapped: a full disk is then an error, where a mapped file kills the process.
            with atomic_write(self.path) as file:
                np.lib.format.write_array_header_1_0(file, header)
                rows = range(len(dataset))
                for batch in read_batches(items, rows, np.stack, 64, num_workers, "decode", progress):
                    file.write(batch.tobytes())  # (b, 3, S, S)
        except UnreadableImageError:
            raise
        except OSError as error:
            raise OSError(
                f"cannot write the decoded images to {self.path} ({error.strerror or error}): they take "
                f"{num_bytes:,} bytes; free some space, or choose another folder"
            ) from error

    def _clear_left_over(self) -> None:
        for part in self.path.parent.glob(".images-*px-*.npy.*.tmp"):
            with suppress(FileNotFoundError):  # another process may clear them too
                if time.time() - part.stat().st_mtime > LEFT_OVER:
                    part.unlink()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self._images[operator.index(index)]))

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        """A batch at once, as torch's data loader asks for it."""
        return [self[index] for index in indices]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_images"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        images = self._open()
        if images is None:
            raise OSError(f"the stored images {self.path} are gone: make the ImageStore again")
        self._images = images


class _Resized(Dataset[np.ndarray]):
    """Item i is the i-th image, (3, S, S) uint8."""

    def __init__(self, dataset: Any, size: int) -> None:
        self.dataset, self.size, self._items = dataset, size, SeededDataset(dataset)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> np.ndarray:
        from PIL import Image

        try:
            image = image_of(self._items[index])
            if isinstance(image, Image.Image):
                image = as_image(image, "it").convert("RGB")  # PIL reads the file here, if it has not yet
        except UnreadableImageError:
            raise
        except Exception as error:  # decoders raise anything
            raise UnreadableImageError(f"cannot read the image {self._name(index)}: {error}") from error
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"the dataset must yield PIL images, got {type(image).__qualname__}: leave out its transform"
            )
        return np.asarray(resized(image, (self.size, self.size))).transpose(2, 0, 1)

    def _name(self, index: int) -> str:
        files = files_of(self.dataset)
        return f"number {index}" if files is None else str(image_of(files[index]))
