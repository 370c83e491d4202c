"""How well do clusters match the classes? NMI, AMI, ARI and clustering accuracy, from two arrays of labels.

A predicted label of -1 means that a sample is in no cluster. It is then a cluster of its own for NMI, AMI and
ARI, so that leaving samples out is never rewarded like putting them together, and wrong for the accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validation import as_class_ids

__all__ = [
    "ClusteringScores",
    "adjusted_mutual_information",
    "adjusted_rand_index",
    "clustering_accuracy",
    "clustering_scores",
    "normalized_mutual_information",
]


@dataclass(frozen=True)
class ClusteringScores:
    """How well N samples are clustered; NaN for N = 0.

    Attributes:
        nmi: normalized mutual information, in [0, 1].
        ami: adjusted mutual information, at most 1, about 0 for a random clustering.
        ari: adjusted Rand index, in [-0.5, 1], about 0 for a random clustering.
        accuracy: share of samples in the cluster that was matched to their class, in [0, 1].
        num_clusters: how many clusters there are, -1 not counted.
        num_unassigned: how many samples are in none (-1).
    """

    nmi: float
    ami: float
    ari: float
    accuracy: float
    num_clusters: int
    num_unassigned: int


def clustering_scores(true_labels: Any, predicted_labels: Any) -> ClusteringScores:
    """NMI, AMI, ARI and accuracy of a clustering, all four.

    Args:
        true_labels: (N,) integers, any ids; -1 is a class like the others.
        predicted_labels: (N,) integers, any ids; -1 (and nothing else) for a sample in no cluster.

    Returns:
        `ClusteringScores`.

    Raises:
        TypeError, ValueError: for labels that are no integers, or not one for each sample.

    Example:
        >>> scores = clustering_scores([0, 0, 1, 1], [5, 5, 3, 5])
        >>> scores.accuracy, round(scores.nmi, 3), round(scores.ari, 3)
        (0.75, 0.344, 0.0)
    """
    classes, clusters = _pair(true_labels, predicted_labels)
    return ClusteringScores(
        nmi=normalized_mutual_information(classes, clusters),
        ami=adjusted_mutual_information(classes, clusters),
        ari=adjusted_rand_index(classes, clusters),
        accuracy=clustering_accuracy(classes, clusters),
        num_clusters=len(np.unique(clusters[clusters != -1])),
        num_unassigned=int((clusters == -1).sum()),
    )


def clustering_accuracy(true_labels: Any, predicted_labels: Any) -> float:
    """Share of samples whose cluster is matched to their class, by the best one-to-one matching.

        ACC = 1/N max over m of  #{ i : m(predicted_i) = true_i }

    where m gives every cluster another class (Hungarian matching). Where there are more clusters than
    classes, the clusters left over are wrong; so is every -1.

    Arguments and errors as of `clustering_scores`.

    Returns:
        ACC in [0, 1]; NaN for N = 0. The matching takes a table of clusters x classes float64 numbers.

    Example:
        >>> clustering_accuracy([0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, -1])
        0.6666666666666666
    """
    classes, clusters = _pair(true_labels, predicted_labels)
    if not len(classes):
        return math.nan
    from scipy.optimize import linear_sum_assignment

    assigned = clusters != -1
    columns = np.unique(classes, return_inverse=True)[1][assigned]
    rows = np.unique(clusters[assigned], return_inverse=True)[1]
    if not len(rows):
        return 0.0
    shape = (int(rows.max()) + 1, int(columns.max()) + 1)
    table = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(classes))


def normalized_mutual_information(true_labels: Any, predicted_labels: Any) -> float:
    """NMI, 2 I(true; predicted) / (H(true) + H(predicted)), in [0, 1]; as `adjusted_rand_index` otherwise.

    It grows with the number of clusters.
    """
    return _by_sklearn("normalized_mutual_info_score", true_labels, predicted_labels)


def adjusted_mutual_information(true_labels: Any, predicted_labels: Any) -> float:
    """AMI, the mutual information adjusted for chance (Vinh et al. 2010): at most 1, about 0 at random.

    Arguments, N = 0 and errors as of `clustering_accuracy`; each -1 is a cluster of its own.
    """
    return _by_sklearn("adjusted_mutual_info_score", true_labels, predicted_labels)


def adjusted_rand_index(true_labels: Any, predicted_labels: Any) -> float:
    """ARI, the share of pairs on which both agree, adjusted for chance (Hubert, Arabie 1985): in [-0.5, 1].

    Arguments, N = 0 and errors as of `clustering_accuracy`; each -1 is a cluster of its own.

    Example:
        >>> adjusted_rand_index([0, 0, 1, 1], [7, 2, 7, 2])
        -0.5
    """
    return _by_sklearn("adjusted_rand_score", true_labels, predicted_labels)


def _by_sklearn(name: str, true_labels: Any, predicted_labels: Any) -> float:
    from sklearn import metrics

    classes, clusters = _pair(true_labels, predicted_labels)
    if not len(classes):
        return math.nan
    alone = clusters == -1
    numbered = np.unique(clusters, return_inverse=True)[1]
    numbered[alone] = len(clusters) + np.arange(int(alone.sum()))
    return float(getattr(metrics, name)(classes, numbered))


def _pair(true_labels: Any, predicted_labels: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    num = len(true_labels) if np.ndim(true_labels) else 0
    classes = as_class_ids(true_labels, num, "true_labels")
    return classes, as_class_ids(predicted_labels, num, "predicted_labels")
