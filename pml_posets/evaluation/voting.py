"""Object classes told by the nearest labelled samples, a vote weighted by similarity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .._validation import as_count, as_features, as_labels, unit_rows
from ..neighbors.nearest import search


@dataclass(frozen=True, eq=False)
class Votes:
    """What k nearest samples say about the class of each query.

    Attributes:
        classes: (N,) int64, the class with the highest score.
        scores: (N, C) float64, from 0 to 1; a row sums to at most 1.
        indices: (N, k) int64, the nearest samples, nearest first.
    """

    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    indices: NDArray[np.int64]


def knn_vote(
    query_features: ArrayLike | torch.Tensor,
    gallery_features: ArrayLike | torch.Tensor,
    gallery_labels: Any,
    k: int = 5,
) -> Votes:
    r"""Tell the class of each query by its k nearest gallery samples.

    With the similarity s = 1 + r, r Pearson's correlation of two feature vectors, and N the k nearest,

        score(c) = ( |N_c| / k ) * ( sum_{i in N_c} s_i / sum_{i in N} s_i ),    N_c those of class c.

    Args:
        query_features: (N, D) numbers.
        gallery_features: (G, D) numbers.
        gallery_labels: (G,) integers from 0.
        k: how many are asked, at most G. Default 5, the paper's.

    Returns:
        `Votes`. Of classes with equal scores the one whose nearest sample is nearest is taken. A row without
        any variation has the correlation 0 with all.

    Raises:
        TypeError, ValueError: for features that are no finite numbers, shapes that do not fit, k beyond G.

    Source: Bautista et al. (CVPR 2017), section 4.2 and Table 5; the formula is that of their public code.
    Differs from the paper: in nothing known.

    Example:
        >>> votes = knn_vote([[0.0, 1.0, 2.0]], [[0.0, 2.0, 4.0], [3.0, 1.0, 0.0], [0, 1, 3]], [1, 0, 1], k=3)
        >>> votes.classes.tolist(), votes.scores.round(2).tolist()
        ([1], [[0.0, 0.66]])
    """
    queries, gallery = (
        _centred(query_features, "query_features"),
        _centred(gallery_features, "gallery_features"),
    )
    labels = as_labels(gallery_labels, len(gallery), "gallery_labels", contiguous=False)
    if labels.size and labels.min() < 0:
        raise ValueError("gallery_labels must be from 0: leave samples without a class out of the gallery")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query_features must have {gallery.shape[1]} columns like gallery_features, got {queries.shape}"
        )
    k = as_count(k, "k")
    if k > len(gallery):
        raise ValueError(f"k must be at most {len(gallery)}, the size of the gallery, got {k}")
    found = search(as_features(gallery), k, query_features=queries)
    indices = found.indices  # (N, k)
    length = (queries**2).sum(axis=1) + (gallery**2).sum(axis=1)[indices].T  # 1 or 0 each
    similarities = (1 + (length - found.distances.T.astype(np.float64) ** 2) / 2).clip(0, 2).T
    shares = similarities / similarities.sum(axis=1, keepdims=True).clip(min=1e-12)  # (N, k)
    num_classes = int(labels.max()) + 1
    counts, summed = np.zeros((2, len(queries), num_classes))
    rows = np.repeat(np.arange(len(queries)), k)
    voted = labels[indices]  # (N, k)
    np.add.at(counts, (rows, voted.reshape(-1)), 1 / k)
    np.add.at(summed, (rows, voted.reshape(-1)), shares.reshape(-1))
    scores = counts * summed
    of_votes = np.take_along_axis(scores, voted, axis=1)  # (N, k), nearest first
    best = np.isclose(of_votes, of_votes.max(axis=1, keepdims=True), rtol=1e-9).argmax(axis=1)
    return Votes(voted[np.arange(len(queries)), best], scores, indices)


def _centred(features: Any, name: str) -> NDArray[np.float32]:
    """Unit rows less their own mean: their inner products are correlations; constant rows become zeros."""
    array = np.asarray(features.detach().cpu() if isinstance(features, torch.Tensor) else features)
    if array.ndim == 2 and array.dtype.kind in "fiu":
        array = array - array.mean(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray(unit_rows(array, name), np.float32)
