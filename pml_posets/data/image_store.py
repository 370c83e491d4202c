"""Decoded images of one size, in one file that is mapped into memory."""

from __future__ import annotations

import math
import operator
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .._random import preserved_randomness
from .cache import data_identity, digest
from .datasets import UnreadableImageError

__all__ = ["ImageStore"]

LEFT_OVER = 24 * 3600  # seconds: a half-made file that nothing was written to for so long was left by a crash


class ImageStore(Dataset[torch.Tensor]):
    """A dataset's images, decoded and resized once, then read from a memory-mapped file.

    Training reads every image many times; decoding it each time costs more than a small network's step. The
    file takes N x 3 x S x S bytes, and the operating system keeps as much of it in memory as there is room.
    It is named after its size and the identity of the data, so that a data set that changed makes a new one
    (the old one stays until somebody deletes it). It appears under its name only when it is whole.

    Args:
        dataset: yields PIL images, or tuples whose first element is one; the same image each time.
        folder: where the file lies; made if missing.
        size: S, side of the square images, pixels, at least 1. Images that are not square are stretched.
        data_id: what stands for the data, in place of `cache.data_identity(dataset)`: for data sets whose
            identity cannot be told, or that depend on more than their files, as crops do on their boxes. The
            caller changes it when the data change. Default None.
        num_workers: processes that decode. Default 0: this one.
        progress: show a progress bar while the file is made. Default True.

    Attributes:
        path: the file.
        shape: (N, 3, S, S).
        data_id: string that stands for these images at this size, for caches of what is made from them.

    Item i is a (3, S, S) uint8 tensor, RGB, the reader's own copy.

    Raises:
        ValueError: size below 1, or no images.
        TypeError: without data_id, if it cannot be told when the data change; if an item is no PIL image.
        UnreadableImageError: if an image cannot be read; the message names it.
        OSError: if the file cannot be written, with the bytes that it takes.

    Source: none, an addition.
    Differs from the paper: the paper does not say how images are stored.

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
        size = operator.index(size)
        if size < 1:
            raise ValueError(f"size must be at least 1 px, got {size}")
        if len(dataset) == 0:
            raise ValueError("there are no images to store: the dataset is empty")
        self.shape = (len(dataset), 3, size, size)
        self.data_id = digest({"store": 1, "shape": self.shape}, _identity(dataset, data_id))
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
        from tqdm import tqdm

        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        loader = DataLoader(
            _Resized(dataset, self.shape[-1]),
            batch_size=64,
            num_workers=num_workers,
            collate_fn=np.stack,
        )
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        try:
            with self._writing():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._clear_left_over()
                free = shutil.disk_usage(self.path.parent).free
                if free < math.prod(self.shape):
                    raise OSError(f"there are {free:,} bytes free")
                # Written, not mapped: a full disk is then an error, where a mapped file kills the process.
                file = open(part, "wb")  # noqa: SIM115 - the loader's errors are not the file's
            with file, tqdm(total=len(dataset), desc="decode", unit="img", disable=not progress) as bar:
                with self._writing():
                    np.lib.format.write_array_header_1_0(file, header)
                with preserved_randomness(accelerators=False):
                    for batch in loader:  # (b, 3, S, S)
                        with self._writing():
                            file.write(batch.tobytes())
                        bar.update(len(batch))
                with self._writing():
                    file.flush()
                    os.fsync(file.fileno())
            with self._writing():
                os.replace(part, self.path)
        finally:
            with suppress(OSError):
                part.unlink()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"cannot write the decoded images to {self.path} ({error.strerror or error}): they take "
                f"{math.prod(self.shape):,} bytes; free some space, or choose another folder"
            ) from error

    def _clear_left_over(self) -> None:
        for part in self.path.parent.glob(".images-*px-*.npy.*.part"):
            with suppress(FileNotFoundError):  # another process may clear them too
                if time.time() - part.stat().st_mtime > LEFT_OVER:
                    part.unlink()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self._images[index]))

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        """A batch at once, as torch's data loader asks for it."""
        return [self[index] for index in indices]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_images"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        images = self._open()
        if images is None:
            raise OSError(f"the stored images {self.path} are gone: make the ImageStore anew")
        self._images = images


class _Resized(Dataset[np.ndarray]):
    """Item i is the i-th image, (3, S, S) uint8."""

    def __init__(self, dataset: Any, size: int) -> None:
        self.dataset, self.size = dataset, size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> np.ndarray:
        from PIL import Image

        try:
            item = self.dataset[index]
            image = item[0] if isinstance(item, (tuple, list)) else item
            if isinstance(image, Image.Image):
                image = image.convert("RGB")  # here the file is read, if PIL has not read it yet
        except UnreadableImageError:
            raise
        except Exception as error:  # decoders raise anything
            raise UnreadableImageError(f"cannot read the image {self._name(index)}: {error}") from error
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"the dataset must yield PIL images, got {type(image).__qualname__}: leave out its transform"
            )
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return np.asarray(image).transpose(2, 0, 1)

    def _name(self, index: int) -> str:
        for key in ("paths", "samples", "imgs"):
            if hasattr(self.dataset, key):
                file = getattr(self.dataset, key)[index]
                return str(file[0] if isinstance(file, tuple) else file)
        return f"number {index}"


def _identity(dataset: Any, data_id: str | None) -> Any:
    if data_id is not None:
        return data_id
    try:
        return data_identity(dataset)
    except TypeError as error:
        raise TypeError(
            f"cannot tell when a {type(dataset).__qualname__} changes: give data_id, a string that changes "
            "with the data"
        ) from error
