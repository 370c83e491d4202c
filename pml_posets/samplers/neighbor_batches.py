"""The sampler of STML: batches of queries, each with its nearest neighbors, in several views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .._validation import ArrayLike, as_count, as_features
from ..neighbors.nearest import Method, search
from ..posets import Posets
from .pseudo_label import GivenLabels, PseudoLabelProvider, PseudoLabelSampler

__all__ = ["NeighborBatches"]


class NeighborBatches(PseudoLabelSampler):
    """Draws queries and their nearest neighbors, so that the samples of a batch resemble each other.

    A batch of B indices is B / (k v) queries with k samples each, the query and its k - 1 nearest neighbors,
    nearest first, in v views, one after another. A sample that is a neighbor of two queries is in it twice.

    The neighbors are those in the features of the round: in a `JointTrainer` every y-step makes a new
    table, so that a round of one epoch is the schedule of the paper. Euclidean distances are taken as the
    features are; `JointTrainer.extract` brings them to unit length.

    The queries of an epoch are drawn without repeats, until all samples have been queries. The batches are a
    function of (seed, round, epoch) alone; each pass over the sampler is the next epoch.

    Args:
        features: (N, D) float32, in dataset order, for the first table. It is made when it is first needed.
        batch_size: B, a multiple of samples_per_query times views, at most N times views. Default 240, the
            published value.
        samples_per_query: k, the query included, at most N. Default 5.
        views: v, how often each drawn sample is in a batch, augmented differently each time. Default 2.
        grouping: a `PseudoLabelProvider`, for losses of surrogate classes beside. Default: no classes, every
            sample is unassigned.
        num_nearest: Z of the posets made of that grouping. Default 2.
        method: of `pml_posets.neighbors.search`, "exact" (default) or "approximate".
        num_batches: batches in an epoch. Default: N v / B, rounded down, at least 1.
        seed: from 0. Default 0.

    Attributes:
        epoch, posets, labels, medoids: as those of `PseudoLabelSampler`.

    Raises:
        TypeError, ValueError: for arguments out of range or that do not match each other.

    Source: "Self-Taught Metric Learning without Labels" (CVPR 2022).
    Differs from the paper: the query counts as one of its k nearest (whether it does in the paper is
    not known to us), and no sample is a query twice in an epoch.

    Example:
        >>> features = np.arange(12, dtype=np.float32)[:, None]
        >>> sampler = NeighborBatches(features, batch_size=12, samples_per_query=3, views=2)
        >>> batch = next(iter(sampler))
        >>> len(sampler), len(batch), batch[:6] == batch[6:]
        (2, 12, True)
        >>> sampler.neighbors[4].tolist()
        [4, 3, 5]
    """

    def __init__(
        self,
        features: ArrayLike,
        batch_size: int = 240,
        *,
        samples_per_query: int = 5,
        views: int = 2,
        grouping: PseudoLabelProvider | None = None,
        num_nearest: int = 2,
        method: Method = "exact",
        num_batches: int | None = None,
        seed: int = 0,
    ) -> None:
        features = as_features(features)
        if grouping is None:
            grouping = GivenLabels(np.full(len(features), -1))
        super().__init__(
            features,
            batch_size,
            num_nearest=num_nearest,
            views=views,
            grouping=grouping,
            num_batches=num_batches,
            seed=seed,
        )
        if num_batches is None:
            self.num_batches = max(1, self.num_samples * self.views // self.batch_size)
        self.samples_per_query = as_count(samples_per_query, "samples_per_query")
        if self.samples_per_query > self.num_samples:
            found = f"{samples_per_query} for {self.num_samples} samples"
            raise ValueError(f"samples_per_query must be at most the number of samples, got {found}")
        if self.batch_size % (self.samples_per_query * self.views):
            factors = f"samples_per_query x views = {samples_per_query} x {views}"
            raise ValueError(f"batch_size must be a multiple of {factors}, got {batch_size}")
        if method not in ("exact", "approximate"):
            raise ValueError(f"method must be 'exact' or 'approximate', got {method!r}")
        self.method: Method = method
        self._table: np.ndarray | None = None

    @property
    def num_queries(self) -> int:
        """Queries in a batch."""
        return self.batch_size // (self.samples_per_query * self.views)

    @property
    def neighbors(self) -> np.ndarray:
        """(N, k) int64, each sample and its k - 1 nearest neighbors in the features of the round."""
        if self._table is None:
            self.regroup(*self._waiting)
        assert self._table is not None
        return self._table

    def regroup(self, features: ArrayLike, mirrored: ArrayLike | None = None) -> Posets:
        """As `PseudoLabelSampler.regroup`, with a new table of neighbors, of `features` alone."""
        features = as_features(features)
        table = np.arange(len(features))[:, None]  # (N, 1)
        if self.samples_per_query > 1 and len(features) == self.num_samples:
            found = search(features, self.samples_per_query - 1, method=self.method, seed=self.seed)
            table = np.concatenate([table, found.indices], axis=1)  # (N, k)
        posets = super().regroup(features, mirrored)  # checks the shape
        self._table = table
        return posets

    def __iter__(self) -> Iterator[list[int]]:
        table, epoch, round_ = self.neighbors, self.epoch, self.posets.round
        self.epoch += 1
        waiting, sweep = np.empty(0, np.int64), 0
        for _ in range(self.num_batches):
            while waiting.size < self.num_queries:
                rng = np.random.default_rng([self.seed, round_, epoch, sweep])
                waiting, sweep = np.concatenate([waiting, rng.permutation(self.num_samples)]), sweep + 1
            queries, waiting = waiting[: self.num_queries], waiting[self.num_queries :]
            yield table[queries].reshape(-1).tolist() * self.views

    def state_dict(self) -> dict[str, Any]:
        """Table, posets and next epoch: all that a new sampler with the same arguments needs to go on."""
        return {"neighbors": torch.tensor(self.neighbors), **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state back; a ValueError for one of another number of samples or neighbors."""
        table = state.get("neighbors")
        if not isinstance(table, torch.Tensor):
            raise ValueError("this is no state of NeighborBatches (it has no neighbors)")
        if table.shape != (self.num_samples, self.samples_per_query):
            here = f"this sampler has {self.num_samples} with {self.samples_per_query}"
            there = f"{table.shape[0]} samples with {table.shape[-1]} to a query"
            raise ValueError(f"the state belongs to {there}, {here}")
        super().load_state_dict(state)
        self._table = table.numpy().copy()
