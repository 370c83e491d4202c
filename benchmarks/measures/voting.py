"""Object classes by a vote of the nearest labeled samples (Table 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pml_posets._validation import as_count, as_features, as_labels, as_numbers, unit_rows
from pml_posets.neighbors.nearest import search


@dataclass(frozen=True, eq=False)
class Votes:
    """What the k nearest samples say about the class of each query.

    Attributes:
        classes: (N,) int64, the class with the highest score.
        scores: (N, C) float64, in [0, 1]; a row sums to at most 1.
        indices: (N, k) int64, the nearest samples, nearest first.
        correlations: (N, k) float64, of each with the query, in [-1, 1].
    """

    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    indices: NDArray[np.int64]
    correlations: NDArray[np.float64]


def knn_vote(
    query_features: ArrayLike | torch.Tensor,
    gallery_features: ArrayLike | torch.Tensor,
    gallery_labels: Any,
    k: int = 5,
) -> Votes:
    """Predict the class of each query by its k nearest gallery samples.

    With the similarity s = 1 + r, r Pearson's correlation of two feature vectors, and N the k nearest,

        score(c) = ( |N_c| / k ) * ( sum_{i in N_c} s_i / sum_{i in N} s_i ),    N_c those of class c.

    Args:
        query_features: (N, D) real numbers.
        gallery_features: (G, D) real numbers.
        gallery_labels: (G,) integers from 0.
        k: how many vote, at most G. Default 5, the paper's.

    Returns:
        `Votes`. Of classes with equal scores the one whose nearest sample is nearest wins. The correlation
        with a constant row (a blank image) is 0.

    Raises:
        TypeError, ValueError: for features that are not finite numbers, shapes that do not match, k above G.

    Source: Bautista et al. (CVPR 2017), section 4.2 and Table 5; the formula is that of their public code.
    """
    queries = _standardized(query_features, "query_features", 1)
    gallery = _standardized(gallery_features, "gallery_features", 2)
    labels = as_labels(gallery_labels, len(gallery), "gallery_labels", contiguous=False)
    if labels.size and labels.min() < 0:
        raise ValueError("gallery_labels must be from 0: leave samples without a class out of the gallery")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query_features must have {gallery.shape[1] - 2} columns like gallery_features, "
            f"got {(len(queries), queries.shape[1] - 2)}"
        )
    k = as_count(k, "k")
    if k > len(gallery):
        raise ValueError(f"k must be at most {len(gallery)}, the size of the gallery, got {k}")
    nearest = search(gallery, k, query_features=queries)
    voted = labels[nearest.indices]  # (N, k)
    similarities = (2 - nearest.distances.astype(np.float64) ** 2 / 2).clip(0, 2)  # 1 + r of unit rows
    shares = similarities / similarities.sum(axis=1, keepdims=True).clip(min=1e-12)  # (N, k)
    counts, summed = np.zeros((2, len(queries), int(labels.max()) + 1))
    rows = np.arange(len(queries))[:, None]
    np.add.at(counts, (rows, voted), 1 / k)
    np.add.at(summed, (rows, voted), shares)
    scores = counts * summed
    of_votes = np.take_along_axis(scores, voted, axis=1)  # (N, k), nearest first
    best = np.isclose(of_votes, of_votes.max(axis=1, keepdims=True), rtol=1e-9).argmax(axis=1)
    return Votes(voted[rows[:, 0], best], scores, nearest.indices, similarities - 1)


def _standardized(features: Any, name: str, side: int) -> NDArray[np.float32]:
    """(N, D + 2) unit rows whose inner products are correlations.

    A constant row (up to rounding) has no direction: it becomes a unit vector along the first or second extra
    column, by `side`, at a right angle to all rows of the other side.
    """
    given = as_numbers(features, name)
    as_features(given, name)  # shape and finite values, before any arithmetic
    rows = given.astype(np.float64)
    constant = np.ptp(rows, axis=1) <= 8 * np.finfo(given.dtype).eps * np.abs(rows).max(axis=1)
    rows -= rows.mean(axis=1, keepdims=True)
    rows[constant] = 0
    unit = np.zeros((len(rows), rows.shape[1] + 2), np.float32)
    unit[:, :-2] = unit_rows(rows, name)
    unit[constant, side - 3] = 1
    return unit
