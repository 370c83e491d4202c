"""Features on disk: an entry knows which data and settings made it, and is not used once either changes."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._io import read_npz, write_npz
from .datasets import UnreadableImageError

__all__ = ["CacheKey", "FeatureCache", "data_identity", "digest"]


@dataclass(frozen=True)
class CacheKey:
    """Which entry (settings and the names of the data), and the state of the data it must be made of."""

    entry: str
    state: str


class FeatureCache:
    """A folder with one file for each pair of settings and data.

    An entry is stale when a file of the data has another size or modification time, or data in memory other
    contents; it is then computed anew and replaced. Entries are written whole or not at all, and a damaged
    one counts as missing.

    Args:
        folder: where the entries lie; made if it is missing.

    Raises:
        OSError: if the folder cannot be made or written to (now, not after hours of work).

    Example:
        >>> import tempfile
        >>> cache = FeatureCache(tempfile.mkdtemp())
        >>> images = np.zeros((2, 8, 8), np.uint8)
        >>> key = cache.key({"name": "mean"}, images)
        >>> cache.load(key) is None
        True
        >>> cache.save(key, {"features": images.mean((1, 2))[:, None]})
        >>> cache.load(key)["features"].shape
        (2, 1)
        >>> images[0] = 1
        >>> cache.load(cache.key({"name": "mean"}, images)) is None
        True
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        probe = self.folder / f".probe.{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OSError(f"the cache folder {self.folder} cannot be written to: {error}") from error

    def key(self, settings: Mapping[str, Any], images: Any, data_id: str | None = None) -> CacheKey:
        """The key of features made with these settings from these images.

        Args:
            settings: everything the features depend on besides the data: plain values and arrays.
            images: the data, see `data_identity`.
            data_id: what stands for the data instead; the caller changes it when the data change.

        Raises:
            TypeError: if it cannot be told when the images change and no data_id is given.
        """
        name, state = data_identity(images) if data_id is None else (data_id, digest(data_id, len(images)))
        return CacheKey(digest(dict(settings), name), state)

    def load(self, key: CacheKey) -> dict[str, np.ndarray] | None:
        """The arrays of an entry; None if there is none, or it is stale or damaged."""
        try:
            arrays = read_npz(self._path(key))
        except (FileNotFoundError, ValueError):
            return None
        state = arrays.pop("state", None)
        return arrays if state is not None and str(state) == key.state else None

    def save(self, key: CacheKey, arrays: Mapping[str, np.ndarray]) -> None:
        """Write or replace an entry; where that fails (a full disk), warn and leave what was there."""
        try:
            write_npz(self._path(key), {**arrays, "state": np.array(key.state)})
        except OSError as error:
            warnings.warn(f"the features were not cached in {self.folder}: {error}", stacklevel=2)

    def _path(self, key: CacheKey) -> Path:
        return self.folder / f"features-{key.entry[:24]}.npz"


def data_identity(images: Any) -> tuple[str, str]:
    """What tells one set of images from another, and one state of a set from another.

    Args:
        images: paths; arrays, tensors or PIL images in memory (their contents count); or a dataset with a
            list of files in `paths`, `samples` or `imgs` (their sizes and modification times count, and the
            `repr` of the dataset's transforms); or a `torch.utils.data.Subset` of any of these.

    Returns:
        (name, state), two digests.

    Raises:
        TypeError: for anything else.
        UnreadableImageError: if a file is missing.

    Example:
        >>> data_identity(np.zeros((1, 2, 2))) == data_identity(np.ones((1, 2, 2)))
        False
    """
    if isinstance(images, torch.utils.data.Subset):
        name, state = data_identity(images.dataset)
        chosen = digest([int(index) for index in images.indices])
        return digest(name, chosen), digest(state, chosen)
    files = next((getattr(images, key) for key in ("paths", "samples", "imgs") if hasattr(images, key)), None)
    transforms = [repr(getattr(images, key, None)) for key in ("transform", "transforms")]
    if (
        files is None
        and isinstance(images, Sequence)
        and len(images)
        and isinstance(images[0], str | os.PathLike)
    ):
        files = images
    if files is not None:
        paths = [os.fspath(file[0] if isinstance(file, tuple) else file) for file in files]
        return digest(paths, transforms), digest([_stat(path) for path in paths])
    if isinstance(images, np.ndarray | torch.Tensor | list | tuple):
        contents = hashlib.sha256()
        for image in images:
            pixels = np.asarray(image[0] if isinstance(image, tuple) else image)
            if pixels.dtype.kind not in "buif":
                break
            contents.update(f"{pixels.shape}{pixels.dtype}".encode())
            contents.update(np.ascontiguousarray(pixels).tobytes())
        else:
            return f"{len(images)} in memory", contents.hexdigest()
    raise TypeError(
        f"cannot tell when a {type(images).__qualname__} changes: give data_id, a string that changes with "
        "the data, or no cache_dir"
    )


def digest(*things: Any) -> str:
    """A SHA-256 hex digest of plain values (numbers, strings, lists, dicts) and arrays."""
    state = hashlib.sha256()

    def plain(thing: Any) -> Any:
        if isinstance(thing, np.ndarray):
            content = hashlib.sha256(np.ascontiguousarray(thing).tobytes()).hexdigest()
            return [str(thing.dtype), list(thing.shape), content]
        if isinstance(thing, np.generic):
            return thing.item()
        raise TypeError(f"cannot digest a {type(thing).__qualname__}")

    state.update(json.dumps(things, default=plain, sort_keys=True).encode())
    return state.hexdigest()


def _stat(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise UnreadableImageError(f"cannot read the image {path}: {error}") from error
    return status.st_size, status.st_mtime_ns
