"""k-means as a provider of pseudo-labels, beside `pml_posets.grouping.SurrogateGrouping`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

from .._estimator import Estimator
from .._validation import as_count, as_features, as_labels, check_option

__all__ = ["KMeans"]

Backend = Literal["auto", "faiss", "sklearn"]


class KMeans(Estimator):
    r"""k-means: every sample belongs to the nearest of K centres, which are the means of their samples,

        min over centres c_k and labels y of  sum_i || x_i - c_{y_i} ||^2.

    A provider of pseudo-labels for `pml_posets.samplers.PseudoLabelSampler`; none is unassigned. From the
    second round on it starts from the labels of the round before, so that class ids keep their meaning and
    the network's head can stay.

    Args:
        num_clusters: K, 2 to N. UDML-SS: 100 on CUB and Cars, 10,000 on Stanford Online Products.
        num_starts: how often it is run from new centres; the best run counts. Default 1. A warm start is one.
        max_iterations: of assigning and averaging. Default 50.
        warm_start: begin with the means, in the features of now, of the labels that `fit_predict` is given.
            Default True. A cluster without a member then begins at the sample farthest from its centre.
        backend: "faiss", which is faster, "sklearn", or "auto" (default): faiss where it is installed. The
            two find different optima of the same sum.
        random_state: seed of the first centres (k-means++). Default 0.

    Attributes:
        labels_: (N,) int64, 0..K-1; a cluster may be empty only if fewer than K samples differ.
        centers_: (K, D) float32.
        inertia_: the sum above.

    Raises:
        TypeError, ValueError: from `fit_predict`, for parameters out of range, fewer samples than clusters,
            features that are no finite numbers.
        ImportError: from `fit_predict`, if the backend is not installed.

    Source: Cao, Chen, Lim (2019), UDML-SS: clusters of the embeddings, made anew every few epochs.
    Differs from the paper: it starts from the last centres themselves; here they are taken anew as the means
    of their samples in the features of now, which also holds when these have another dimension.

    Example:
        >>> features = np.float32([[0.0], [0.1], [5.0], [5.1]])
        >>> a, b, c, d = KMeans(2).fit_predict(features).tolist()
        >>> a == b, c == d, a == c
        (True, True, False)
    """

    labels_: np.ndarray
    centers_: np.ndarray
    inertia_: float

    def __init__(
        self,
        num_clusters: int = 100,
        num_starts: int = 1,
        max_iterations: int = 50,
        warm_start: bool = True,
        backend: Backend = "auto",
        random_state: int = 0,
    ) -> None:
        self.num_clusters = num_clusters
        self.num_starts = num_starts
        self.max_iterations = max_iterations
        self.warm_start = warm_start
        self.backend = backend
        self.random_state = random_state

    def fit_predict(self, features: ArrayLike | torch.Tensor, labels: Any = None) -> np.ndarray:
        """Cluster the features.

        Args:
            features: (N, D) float32.
            labels: (N,) integers, -1 for unassigned, of the round before, for a warm start. Labels of another
                number of classes are not used. Default None: k-means++.

        Returns:
            (N,) int64, also kept as `labels_`.
        """
        rows = np.ascontiguousarray(as_features(features), np.float32)
        clusters = as_count(self.num_clusters, "num_clusters", least=2)
        if clusters > len(rows):
            raise ValueError(
                f"num_clusters must be at most the number of samples, got {clusters} for {len(rows)}"
            )
        as_count(self.num_starts, "num_starts")
        as_count(self.max_iterations, "max_iterations")
        as_count(self.random_state, "random_state", least=0)
        check_option(self.backend, "backend", Backend)
        first = None
        if labels is not None and self.warm_start:
            known = as_labels(labels, len(rows), contiguous=False)
            if known.max(initial=-1) + 1 == clusters:
                first = _means(rows, known, clusters)
        use_faiss = self.backend == "faiss" or (self.backend == "auto" and find_spec("faiss") is not None)
        centers = self._faiss(rows, first) if use_faiss else self._sklearn(rows, first)
        self.labels_, self.centers_, self.inertia_ = _settle(rows, centers)
        return self.labels_

    def _faiss(self, rows: np.ndarray, first: np.ndarray | None) -> np.ndarray:
        try:
            import faiss
        except ImportError:
            raise ImportError('KMeans(backend="faiss") needs faiss-gpu or faiss-cpu') from None
        found = faiss.Kmeans(
            rows.shape[1],
            self.num_clusters,
            niter=self.max_iterations,
            nredo=1 if first is not None else self.num_starts,
            seed=self.random_state,
            init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
            min_points_per_centroid=1,
            max_points_per_centroid=len(rows),  # all of them, no sample
            early_stop_threshold=1e-4,
        )
        found.train(rows, init_centroids=first)
        return np.asarray(found.centroids)

    def _sklearn(self, rows: np.ndarray, first: np.ndarray | None) -> np.ndarray:
        from sklearn.cluster import KMeans as Reference

        found = Reference(
            self.num_clusters,
            init="k-means++" if first is None else first,
            n_init=1 if first is not None else self.num_starts,
            max_iter=self.max_iterations,
            random_state=self.random_state,
        ).fit(rows)
        return np.asarray(found.cluster_centers_, np.float32)


def _means(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """(K, D) float32 means of the labels; those of empty ones are the samples farthest from their mean."""
    assigned = labels >= 0
    sizes = np.bincount(labels[assigned], minlength=count)
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, labels[assigned], rows[assigned])
    centers = sums / np.maximum(sizes, 1)[:, None]
    empty = np.flatnonzero(sizes == 0)
    if empty.size:
        distances = np.where(assigned, ((rows - centers[labels]) ** 2).sum(axis=1), np.inf)
        centers[empty] = rows[np.argsort(-distances, kind="stable")[: empty.size]]
    return centers.astype(np.float32)


def _settle(rows: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Labels by the nearest centre; while clusters are empty they take the samples farthest from theirs."""
    table, points = torch.from_numpy(centers.copy()), torch.from_numpy(rows)
    for _ in range(len(centers)):
        parts = [_nearest(block, table) for block in points.split(4096)]
        distances, labels = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        empty = np.setdiff1d(np.arange(len(centers)), labels)
        far = np.argsort(-distances, kind="stable")[: empty.size]
        if not empty.size or distances[far[-1]] <= 0:
            break
        table[empty] = points[far]
    return labels.astype(np.int64), table.numpy(), float(distances.sum(dtype=np.float64))


def _nearest(block: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(b,) squared distance to, and index of, the nearest centre."""
    squares = (table**2).sum(1) - 2 * block @ table.T  # (b, K)
    index = squares.argmin(dim=1)
    return ((block - table[index]) ** 2).sum(1), index
