"""k-means as a provider of pseudo-labels, beside `pml_posets.grouping.SurrogateGrouping`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import kmeans_plusplus

from .._moved import old_names
from .._validation import ArrayLike, as_count, as_features, as_flag, as_labels, scale_of
from ..neighbors._measuring import squared_gaps

__all__ = ["KMeansGrouping"]

_GREEDY_CLUSTERS = 1000


@dataclass(eq=False, repr=False)
class KMeansGrouping(ClusterMixin, BaseEstimator):
    r"""k-means: every sample belongs to the nearest of K centers, which are the means of their samples,

        min over centers c_k and labels y of  sum_i || x_i - c_{y_i} ||^2.

    A provider of pseudo-labels for `pml_posets.samplers.PseudoLabelSampler`; no sample is unassigned. From
    the second round on it starts from the labels of the round before, so that class ids keep their meaning
    and the network's head can stay. faiss runs it on centered features, from scikit-learn's greedy k-means++
    for up to 1,000 clusters and from its own k-means++ for more.

    Args:
        num_clusters: K, 2 to N. Default 100. UDML-SS: 100 on CUB and Cars, 10,000 on SOP.
        num_starts: runs from new centers (k-means++); the best one counts. Default 1. A warm start is one.
        max_iterations: of assigning and averaging, at most. Default 50.
        warm_start: begin with the means, in the current features, of the labels that `fit_predict` is given.
            Default True. A cluster without a member then begins at the sample farthest from its center.
        random_state: seed of the first centers. Default 0.

    Attributes:
        labels_: (N,) int64, 0..K-1; a cluster may be empty only if fewer than K samples differ.
        centers_: (K, D) float32.
        inertia_: the sum above.
        n_features_in_: D.

    Raises:
        TypeError, ValueError: by `fit`, for an invalid option, invalid features, or too few samples.

    Source: Cao, Chen, Lim (2019), UDML-SS: clusters of the embeddings, renewed every few epochs.
    Differs from the paper: there the start is the last centers, here the means of their samples.

    Example:
        >>> features = np.float32([[0.0], [0.1], [5.0], [5.1]])
        >>> a, b, c, d = KMeansGrouping(2).fit_predict(features).tolist()
        >>> a == b, c == d, a == c
        (True, True, False)
    """

    num_clusters: int = 100
    num_starts: int = 1
    max_iterations: int = 50
    warm_start: bool = True
    random_state: int = 0

    def fit(self, features: ArrayLike, y: Any = None, *, labels: Any = None) -> KMeansGrouping:
        """Cluster the features.

        Args:
            features: (N, D) float32.
            y: ignored.
            labels: (N,) integers, -1 for unassigned, of the round before, for a warm start. Labels of another
                number of classes are not used. Default None: k-means++.

        Returns:
            The estimator.
        """
        rows = as_features(features)
        clusters = as_count(self.num_clusters, "num_clusters", least=2)
        if clusters > len(rows):
            raise ValueError(
                f"num_clusters must be at most the number of samples, got {clusters} for {len(rows)} "
                f"(n_samples={len(rows)}): ask for fewer clusters"
            )
        as_flag(self.warm_start, "warm_start")
        num_starts = as_count(self.num_starts, "num_starts")
        as_count(self.max_iterations, "max_iterations")
        as_count(self.random_state, "random_state", least=0)
        mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        rows = rows - mean  # |c|^2 - 2 c.x in float32 needs rows near the origin
        rows /= (scale := scale_of(rows))
        start = None
        if labels is not None and self.warm_start:
            known = as_labels(labels, len(rows), contiguous=False)
            if known.max(initial=-1) + 1 == clusters:
                start, num_starts = _class_means(rows, known, clusters), 1
        runs = [self._run(rows, start, self.random_state + number) for number in range(num_starts)]
        self.labels_, centers, self.inertia_ = min(runs, key=lambda run: run[2])
        self.centers_ = centers * scale + mean
        self.inertia_ *= float(scale) ** 2
        self.n_features_in_ = rows.shape[1]
        return self

    def fit_predict(self, features: ArrayLike, y: Any = None, *, labels: Any = None) -> np.ndarray:
        """As `fit`, but returns `labels_`."""
        return self.fit(features, y, labels=labels).labels_

    def _run(
        self, rows: np.ndarray, start: np.ndarray | None, seed: int
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Labels, centers and inertia of one run."""
        import faiss

        if start is None and self.num_clusters <= _GREEDY_CLUSTERS:
            start = kmeans_plusplus(rows, self.num_clusters, random_state=seed)[0]
        found = faiss.Kmeans(
            rows.shape[1],
            self.num_clusters,
            niter=self.max_iterations,
            seed=seed,
            init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
            min_points_per_centroid=1,
            max_points_per_centroid=len(rows),  # all of them, no sample
            early_stop_threshold=1e-4,
        )
        found.train(rows, init_centroids=start)
        return _settled(rows, np.array(found.centroids))


def _class_means(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
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


def _settled(rows: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Labels by the nearest center; empty clusters move to the samples farthest from theirs."""
    import faiss

    for _ in range(len(centers)):
        labels = faiss.knn(rows, centers, 1)[1][:, 0]
        index = torch.from_numpy(labels[:, None])
        squares = squared_gaps(torch.from_numpy(centers), torch.from_numpy(rows), index)[:, 0].numpy()
        empty = np.setdiff1d(np.arange(len(centers)), labels)
        far = np.argsort(-squares, kind="stable")[: empty.size]
        if not empty.size or squares[far[-1]] <= 0:
            break
        centers[empty] = rows[far]
    return labels.astype(np.int64), centers, float(squares.sum(dtype=np.float64))


__getattr__ = old_names(__name__, {"KMeans": "grouping.KMeansGrouping"})
