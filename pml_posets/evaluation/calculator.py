"""The measures as an AccuracyCalculator, for the testers of pytorch-metric-learning."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.utils.accuracy_calculator import (
    AccuracyCalculator,
    maybe_get_avg_of_avgs,
    nan_accuracy,
)

from .._validation import as_class_ids, as_count, as_features, scale_of
from .clustering import (
    adjusted_mutual_information,
    adjusted_rand_index,
    clustering_accuracy,
    normalized_mutual_information,
)

__all__ = ["RetrievalCalculator"]

_CLUSTERING = {
    "NMI": normalized_mutual_information,
    "AMI": adjusted_mutual_information,
    "ACC": clustering_accuracy,
    "ARI": adjusted_rand_index,
}
_WHOLE_RANKING = ("mean_average_precision", "mean_reciprocal_rank")


class RetrievalCalculator(AccuracyCalculator):
    """PML's `AccuracyCalculator` with recall@k, ACC and ARI, exact labels and lists no longer than needed.

    It adds `recall_at_<k>` for every k of `ks`, and `ACC` and `ARI` of k-means with as many clusters as
    classes, like PML's `NMI` and `AMI`. PML's own measures keep their names and values. Labels are compared
    exactly: PML makes float32 of them, which merges ids above 2^24.

    Give it to any tester: `GlobalEmbeddingSpaceTester(accuracy_calculator=RetrievalCalculator())`.

    Args:
        include: names of the measures. Default: all but `mean_average_precision` and `mean_reciprocal_rank`,
            which rank all samples: name them, with k=None.
        exclude: names of the measures to leave out.
        ks: the k of recall@k. Default 1, 2, 4, 8, as on CUB and Cars; 1, 10, 100, 1000 on Stanford Products.
        k: length of PML's lists. Default "max_bin_count", the size of the largest class. Lists are extended
            to the largest of `ks`.
        **options: of PML: avg_of_avgs, return_per_class, device, knn_func, kmeans_func.

    Raises:
        TypeError, ValueError: as PML, and for ks that are no integers from 1.

    Example:
        >>> calculator = RetrievalCalculator(include=("recall_at_1", "recall_at_2"), ks=(1, 2))
        >>> features, labels = torch.tensor([[0.0], [1.0], [1.5], [4.0]]), torch.tensor([0, 0, 1, 1])
        >>> calculator.get_accuracy(features, labels)
        {'recall_at_1': 0.5, 'recall_at_2': 0.75}
    """

    def __init__(
        self,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        ks: Sequence[int] = (1, 2, 4, 8),
        k: int | str | None = "max_bin_count",
        **options: Any,
    ) -> None:
        self.ks = tuple(sorted({as_count(each, "every k of ks") for each in ks}))
        for each in self.ks:  # PML looks for methods by this name
            setattr(self, f"calculate_recall_at_{each}", partial(self._recall, each))
        for name, measure in _CLUSTERING.items():
            setattr(self, f"calculate_{name}", partial(_of_clusters, measure))
        if not len(include):
            exclude = (*exclude, *_WHOLE_RANKING)
        super().__init__(include=include, exclude=exclude, k=k, **options)

    def requires_knn(self) -> list[str]:
        """Names of the measures that need neighbors."""
        return [*super().requires_knn(), "mean_reciprocal_rank", *(f"recall_at_{k}" for k in self.ks)]

    def requires_clustering(self) -> list[str]:
        """Names of the measures that need clusters."""
        return [*super().requires_clustering(), "ACC", "ARI"]

    def determine_k(self, bin_counts: torch.Tensor, num_references: int, ref_includes_query: bool) -> int:
        """Length of the lists: PML's, or the largest k of recall@k."""
        asked = [k for k in self.ks if f"recall_at_{k}" in self.get_curr_metrics()]
        length = super().determine_k(bin_counts, num_references, ref_includes_query)
        return max(1, min(max([length, *asked]), num_references - int(ref_includes_query)))

    def get_accuracy(
        self,
        query: Any,
        query_labels: Any,
        reference: Any = None,
        reference_labels: Any = None,
        ref_includes_query: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Measure how well embeddings find and cluster their classes.

        Args:
            query, query_labels: (Q, D) embeddings, tensor or array, and (Q,) integers of any size.
            reference, reference_labels: (N, D) and (N,), those that are searched. Default: the queries, each
                without itself.
            ref_includes_query: whether the first Q references are the queries.
            include, exclude: names of the measures, of those the calculator was made with. Default: all.

        Returns:
            Name to number, or to a list of numbers with `return_per_class`. A query whose class has no
            (other) member among the references is left out, as in PML.

        Raises:
            TypeError, ValueError: for invalid embeddings or labels, or some that do not match.
        """
        if reference is None:
            reference, reference_labels, ref_includes_query = query, query_labels, True
        table = as_features(reference, "reference")
        asked = table if reference is query else as_features(query, "query")
        if asked.shape[1] != table.shape[1]:
            raise ValueError(f"query must have {table.shape[1]} columns like reference, got {asked.shape}")
        wanted = _whole(query_labels, len(asked), "query_labels")
        classes = [wanted, _whole(reference_labels, len(table), "reference_labels")]
        codes = np.unique(np.concatenate(classes), return_inverse=True)[1]  # ids that float32 holds exactly
        if (scale := scale_of(table)) != 1:  # faiss ends the process where squares overflow
            asked, table = asked / scale, table / scale
        theirs = asked, codes[: len(asked)], table, codes[len(asked) :]
        return super().get_accuracy(*theirs, ref_includes_query, include, exclude)

    def _recall(
        self,
        k: int,
        knn_labels: torch.Tensor,  # (Q, length)
        query_labels: torch.Tensor,  # (Q,)
        not_lone_query_mask: torch.Tensor,
        label_counts: Any,
        **kwargs: Any,
    ) -> Any:
        if not not_lone_query_mask.any():
            return nan_accuracy(label_counts[0], self.return_per_class)
        labels = query_labels[not_lone_query_mask][:, None]
        hits = self.label_comparison_fn(labels, knn_labels[not_lone_query_mask, :k]).any(dim=1)
        return maybe_get_avg_of_avgs(hits.double(), labels, self.avg_of_avgs, self.return_per_class)


def _of_clusters(measure: Any, query_labels: Any, cluster_labels: Any, **kwargs: Any) -> float:
    return measure(query_labels.long(), cluster_labels)


def _whole(labels: Any, num: int, name: str) -> np.ndarray:
    """Labels as int64. Some of PML's testers pass float32: taken where they are exact whole numbers."""
    if isinstance(labels, torch.Tensor) and labels.is_floating_point():
        if not bool(((labels == labels.round()) & (labels.abs() < 2**24)).all()):
            raise TypeError(f"{name} must be whole numbers, and below 2^24 in {labels.dtype}: pass integers")
        labels = labels.long()
    return as_class_ids(labels, num, name)
