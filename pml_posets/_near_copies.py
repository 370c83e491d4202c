"""Which photos are copies of each other: by thumbnails, whatever the embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .data.images import as_image

_SIDE = 8  # pixels


def thumbnail(path: Path) -> NDArray[np.uint8]:
    """A photo as (8, 8, 3) pixels."""
    with Image.open(path) as image:
        image.draft("RGB", (8 * _SIDE, 8 * _SIDE))  # JPEG files are decoded at a fraction of their size
        small: Any = as_image(image, str(path)).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.uint8)


def thumbnail_rows(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 8, 8, 3) to (N, 336) differences of adjacent pixels, unit rows; a blank photo's row is 0."""
    pixels = thumbnails.astype(np.float32)
    rows = np.concatenate([np.diff(pixels, axis=axis).reshape(len(pixels), -1) for axis in (1, 2)], axis=1)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6))


def linked_groups(rows: NDArray[np.float32], threshold: float) -> list[list[int]]:
    """Groups linked by pairs with a cosine from the threshold, of two or more rows, the largest first."""
    import faiss
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    index: Any = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    ends, _, columns = index.range_search(rows, threshold - 1e-6)
    sources = np.repeat(np.arange(len(rows)), np.diff(ends.astype(np.int64)))
    links = coo_matrix((np.ones(len(sources)), (sources, columns)), shape=(len(rows), len(rows)))
    labels = connected_components(links, directed=False)[1]
    groups = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    return sorted((group.tolist() for group in groups if len(group) > 1), key=lambda g: (-len(g), g[0]))
