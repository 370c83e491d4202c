"""A metric learned from mutual nearest neighbors, without labels and without gradient steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validation import as_count, as_real
from ..neighbors.nearest import search
from ._rows import LinearStep

__all__ = ["NeighborWhitening"]


@dataclass(eq=False, repr=False)
class NeighborWhitening(LinearStep):
    """Whitening by how mutual nearest neighbors differ, as if each pair of them were a class.

        f(x) = S^(-p/2) (x - mu),    S = S_w + share S_t,    tr S_w = tr S_t

    S_w is the covariance of the differences between samples that are among each other's k nearest, S_t that
    of all samples. Directions in which neighbors differ more than others do are held back. Wrong pairs do
    little harm: the difference of two strangers has the covariance S_t, which is in S anyway. Time grows as
    D^3, memory as D^2: `PartialWhitening` first where D is more than a few thousand.

    Args:
        num_neighbors: k, from 1. Default 5.
        share: of S_t, above 0. Default 0.2.
        power: p, in 0..1. Default 0.5.
        normalize: scale rows to unit length. Default True.

    Attributes:
        mean_: (D,) float32.
        weight_: (D, D) float32, symmetric.
        num_pairs_: mutual neighbors that were found.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> kinds = np.repeat(rng.normal(size=(40, 1)), 3, axis=0)
        >>> rows = np.hstack([kinds, rng.normal(size=(120, 1))])  # the second column tells nothing
        >>> whitening = NeighborWhitening(2, power=1, normalize=False).fit(rows)
        >>> weight = whitening.weight_
        >>> bool(weight[0, 0] > weight[1, 1])
        True
    """

    num_neighbors: int = 5
    share: float = 0.2
    power: float = 0.5
    normalize: bool = True

    def fit(self, features: ArrayLike, y: Any = None) -> NeighborWhitening:
        """Learn from (N, D) features; y is ignored.

        Raises:
            ValueError: for fewer than three rows, rows that are all equal or an argument out of range.
        """
        rows = self._rows_to_fit(features)
        k = min(as_count(self.num_neighbors, "num_neighbors"), max(1, len(rows) - 1))
        share = as_real(self.share, "share", low=0, open_low=True)
        power = as_real(self.power, "power", low=0, high=1)
        mean = rows.mean(0, dtype=np.float64).astype(np.float32)
        total = _scatter(rows - mean)
        if len(rows) < 3 or np.trace(total) <= 0:
            raise ValueError(f"features must be three rows at least, not all equal, got {len(rows)} rows")
        pairs = _mutual(search(rows, k).indices)
        self.num_pairs_ = len(pairs)
        within = _scatter(rows[pairs[:, 0]] - rows[pairs[:, 1]]) if len(pairs) else total
        scale = np.trace(total) / np.trace(within) if np.trace(within) > 0 else 0.0  # 0: copies only
        values, vectors = np.linalg.eigh(scale * within + share * total)
        values = np.maximum(values, 1e-4 * values[-1])
        self.mean_ = mean
        self.weight_ = ((vectors * values ** (-power / 2)) @ vectors.T).astype(np.float32)
        return self


def _scatter(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    return (rows.T @ rows).astype(np.float64) / len(rows)


def _mutual(neighbors: NDArray[np.int64]) -> NDArray[np.int64]:
    """(P, 2): i < j, each among the other's neighbors."""
    pairs = np.stack([np.repeat(np.arange(len(neighbors)), neighbors.shape[1]), neighbors.ravel()], axis=1)
    pairs = pairs[pairs[:, 1] >= 0]
    ordered, counts = np.unique(np.sort(pairs, axis=1), axis=0, return_counts=True)
    return np.asarray(ordered[counts == 2])
