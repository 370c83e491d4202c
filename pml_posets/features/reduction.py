"""Fewer dimensions for features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._random import preserved_randomness, seed_everything
from .._validation import ArrayLike, as_count, as_features, as_mirrored
from .hog_lda import unit_rows

__all__ = ["principal_components"]


def principal_components(
    features: ArrayLike,
    count: int,
    mirrored: ArrayLike | None = None,
    *,
    normalize: bool = True,
    seed: int = 0,
) -> Any:
    """Features in their first principal directions: shorter rows with nearly the same cosines.

    The directions are those of the features as they are, not centred, taken from up to 20,000 rows by a
    randomised decomposition. HOG loses next to nothing at 256, and a neighbour search gains in proportion.

    Args:
        features: (N, D) float32.
        count: directions to keep, from 1. N features span no more than N directions: K = min(count, D, N) are
            kept, or all D, and nothing is changed but the scale, where count is D or more.
        mirrored: (N, D) float32, features of the mirrored images, brought into the same directions.
        normalize: scale rows to unit length. Default True.
        seed: of the decomposition. Default 0.

    Returns:
        (N, K) float32, new arrays, or two of them with `mirrored`.

    Raises:
        TypeError, ValueError: for features that are wrong or do not match, or count < 1.

    Source: none, an addition. Differs from the paper: it does not reduce its features.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(50, 3)) @ np.eye(3, 40)
        >>> principal_components(features, 3).shape
        (50, 3)
    """
    count = as_count(count, "count")
    plain = as_features(features)
    turned = as_mirrored(mirrored, plain)
    views = [plain] if turned is None else [plain, turned]
    if count < plain.shape[1]:
        sample = plain[:: -(-len(plain) // 20_000)]
        rows = torch.from_numpy(
            np.require(sample, requirements="W")
        )  # torch warns of arrays it must not write
        with preserved_randomness():
            seed_everything(seed)
            extra = min(count + 16, *rows.shape)
            directions = torch.svd_lowrank(rows, q=extra, niter=3)[2][:, :count].numpy()  # (D, count)
        views = [view @ directions for view in views]
    views = [np.array(view) for view in views]
    if normalize:
        views = [unit_rows(view) for view in views]
    return views[0] if turned is None else (views[0], views[1])
