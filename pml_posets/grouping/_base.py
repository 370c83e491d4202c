"""What the groupings by lists of neighbors share: one search, and the memory that it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin

from .._classes import check_neighbors
from .._memory import list_bytes, warn_if_short, y_step_bytes
from .._validation import ArrayLike, checked
from ..neighbors.nearest import Backend, Method, Neighbors, search


class NeighborGrouping(ClusterMixin, BaseEstimator):
    """Base of groupings that begin with the `max_neighbors` nearest samples of each sample."""

    max_size: int
    max_neighbors: int | None
    method: Method
    backend: Backend
    device: str | torch.device
    labels_: np.ndarray

    def _inputs(
        self, features: ArrayLike, sources: Any, mirrored: ArrayLike | None
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Options checked; features, mirrored features and sources in the form that is searched in."""
        raise NotImplementedError

    def find_neighbors(
        self, features: ArrayLike, *, sources: Any = None, mirrored: ArrayLike | None = None
    ) -> Neighbors:
        """The search of step 1 alone, for others of a y-step to share.

        Args:
            features, sources, mirrored: as in `fit`.

        Returns:
            The neighbors that `fit` would search for.
        """
        return self._listed(*self._inputs(features, sources, mirrored))

    def _listed(
        self,
        table: np.ndarray,
        mirror: np.ndarray | None,
        codes: np.ndarray | None,
        neighbors: Neighbors | None = None,
    ) -> Neighbors:
        """The neighbors given, checked, or those that a search finds."""
        num_samples, num_dims = table.shape
        if neighbors is not None:
            check_neighbors(neighbors, num_samples, mirror is not None)
            return neighbors
        what = f"a y-step of {num_samples} x {num_dims} features"
        most = max(32, self.max_size) if self.max_neighbors is None else self.max_neighbors
        needed = y_step_bytes(num_samples, num_dims, most)
        warn_if_short(needed, what, certain=list_bytes(num_samples, most))
        with checked(table, mirror):
            return search(
                table,
                min(most, max(1, num_samples - 1)),
                mirrored=mirror,
                sources=codes,
                method=self.method,
                backend=self.backend,
                device=self.device,
                seed=getattr(self, "random_state", 0),
            )
