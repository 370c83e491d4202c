"""G of Eq. 7, which the relaxed assignment raises."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._classes import ClassMembers, oriented, row_sums
from .._validation import ArrayLike, as_features, as_flips, as_labels, as_mirrored, as_real


def compactness(
    features: ArrayLike,
    labels: Any,
    scale: float = 1.0,
    *,
    mirrored: ArrayLike | None = None,
    flips: Any = None,
) -> float:
    """G of Eq. 7: the sum over classes of the mean similarity of their pairs, a sample's pair with itself
    included.

    G = sum_c sum_{i in c} sum_{j in c} exp(-||x_i - x_j|| / scale) / |c|^2; each class counts for 1 at most,
    which it reaches when all its members are equal or when it has one alone.

    Args:
        features: (N, D) float32, in dataset order.
        labels: (N,) integers, -1 unassigned (left out), else 0..C-1.
        scale: of the similarity, above 0. Default and paper: 1.0.
        mirrored: (N, D) float32, features of the mirrored images; None (default) without.
        flips: (N,) bool, True where a sample stands in its class mirrored; None (default): nowhere.

    Returns:
        G, in 0..C; 0 without classes.

    Raises:
        TypeError, ValueError: for arrays that are wrong or do not match, or a scale that is not above 0.

    Source: "Deep Unsupervised Similarity Learning using Partially Ordered Sets" (CVPR 2017), Eq. 7.
    Differs from the paper: in nothing known.

    Example:
        >>> compactness([[0.0], [0.0], [7.0], [8.0]], [0, 0, -1, 1])
        2.0
    """
    features = as_features(features)
    mirrored = as_mirrored(mirrored, features)
    labels = as_labels(labels, len(features))
    as_real(scale, "scale", low=0, open_low=True)
    return exact_compactness(features, mirrored, as_flips(flips, len(features), mirrored), labels, scale)


def exact_compactness(
    features: np.ndarray, mirrored: np.ndarray | None, flips: np.ndarray, labels: np.ndarray, scale: float
) -> float:
    members = ClassMembers.of(labels)
    means = np.zeros(members.sizes.size)
    for classes, block in members.blocks(features.shape[1]):
        rows = oriented(features, mirrored, flips, block.reshape(-1)).reshape(*block.shape, -1)
        sums = row_sums(torch.from_numpy(rows), scale).sum(dim=1).numpy()
        means[classes] = sums / block.shape[1] ** 2
    return float(means.sum())
