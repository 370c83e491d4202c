"""Features on disk: an entry knows which data and settings made it, and is not used once either changes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._io import check_folder, read_npz, write_npz
from .identity import data_identity, digest

__all__ = ["CacheKey", "FeatureCache", "data_identity", "digest"]


@dataclass(frozen=True)
class CacheKey:
    """Which entry (settings and the names of the data), and the state of the data it must be made of."""

    entry: str
    state: str


class FeatureCache:
    """A folder with one file for each pair of settings and data.

    An entry is stale when a file of the data has another size or time of change, or data in memory other
    contents; it is then computed again and replaced. Entries are written whole or not at all, and a damaged
    one counts as missing.

    Args:
        folder: where the entries lie; made if it is missing.

    Raises:
        OSError: if the folder cannot be made or written to.

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
        self.folder = check_folder(folder)

    def key(self, settings: Mapping[str, Any], images: Any, data_id: str | None = None) -> CacheKey:
        """The key of features made with these settings from these images.

        Args:
            settings: everything the features depend on besides the data: plain values and arrays.
            images: the data, see `data_identity`.
            data_id: what stands for the data instead; the caller changes it when the data change.

        Raises:
            TypeError, UnreadableImageError: as `data_identity`.
        """
        name, state = data_identity(images, data_id)
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
