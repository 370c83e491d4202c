"""The measures as an AccuracyCalculator, for the testers of pytorch-metric-learning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from .._validation import as_class_ids, as_count, as_features
from .clustering import (
    adjusted_mutual_information,
    adjusted_rand_index,
    clustering_accuracy,
    normalized_mutual_information,
)
from .retrieval import Finder, RetrievalScores, retrieval_scores, score_rankings

__all__ = ["RetrievalCalculator"]

_DISTANCES = 1 << 26  # numbers that PML's CustomKNN holds at once
_WHOLE_RANKING = ("mean_average_precision", "mean_reciprocal_rank")


class RetrievalCalculator(AccuracyCalculator):
    """PML's `AccuracyCalculator` with recall@k, ACC and ARI, exact labels and bounded memory.

    What it adds: `recall_at_<k>` for every k of `ks`, `ACC` and `ARI` (of k-means with as many clusters as
    classes, like PML's `NMI` and `AMI`). What it keeps: PML's names, with PML's values: `precision_at_1`,
    `r_precision`, `mean_average_precision_at_r`, `NMI`, `AMI`, and, where named in `include`,
    `mean_average_precision` and `mean_reciprocal_rank`. What it does otherwise: labels are compared as
    int64, where PML makes float32 of them and so merges ids above 2^24; neighbours are searched block by
    block in lists no longer than the classes, where PML ranks all N for all N at once.

    Give it to any tester: `GlobalEmbeddingSpaceTester(accuracy_calculator=RetrievalCalculator())`.

    Args:
        include: names of the measures to calculate; empty (default): all but the two of the whole ranking.
        exclude: names of the measures to leave out.
        ks: the k of recall@k. Default 1, 2, 4, 8, as on CUB and Cars; 1, 10, 100, 1000 on Stanford Products.
        avg_of_avgs: average within classes first. Default False.
        return_per_class: lists, a number for each class, in ascending order of the classes that could find
            something. NMI, AMI, ACC and ARI remain single numbers. Default False.
        k: length of the lists of `mean_average_precision` and `mean_reciprocal_rank`: an integer from 1,
            "max_bin_count" for the size of the largest class, or None (default) for the whole ranking. The
            other measures take what they need.
        device: where to search. Default None: a GPU where there is one, as in PML.
        knn_func: PML's `FaissKNN`, `CustomKNN` or the like, called with (query, k, reference) for blocks of
            queries; None (default): `pml_posets.neighbors.search`, by Euclidean distance.
        kmeans_func: called with (query, number of clusters), gives (Q,) cluster labels, -1 for a sample in
            none (see `pml_posets.evaluation.clustering`); None (default): PML's `FaissKMeans`.

    Raises:
        TypeError, ValueError: as PML, and for ks that are no integers from 1.

    Queries whose class has no other member among the references are left out of all retrieval measures, as in
    PML; without any other the measures are NaN. After `get_accuracy`, `scores` holds the `RetrievalScores` of
    the last call, which say how many were left out. PML's label_comparison_fn is not there: labels are ids.

    A subclass adds a measure x by a method `calculate_x`. It gets the keywords query, reference, and
    query_labels and reference_labels, both numbered from 0, and ref_includes_query; scores, if `requires_knn`
    names a measure asked for; cluster_labels, if `requires_clustering` does. There is no knn_labels.

    Source: the measures of `pml_posets.evaluation.retrieval` and `clustering`.
    Differs from the paper: the paper of the posets measures none of them.

    Example:
        >>> calculator = RetrievalCalculator(include=("recall_at_1", "recall_at_2"), ks=(1, 2))
        >>> features, labels = torch.tensor([[0.0], [1.0], [1.5], [4.0]]), torch.tensor([0, 0, 1, 1])
        >>> calculator.get_accuracy(features, labels)
        {'recall_at_1': 0.5, 'recall_at_2': 0.75}
    """

    scores: RetrievalScores | None = None

    def __init__(
        self,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        ks: Sequence[int] = (1, 2, 4, 8),
        avg_of_avgs: bool = False,
        return_per_class: bool = False,
        k: int | Literal["max_bin_count"] | None = None,
        device: str | torch.device | None = None,
        knn_func: Callable[..., Any] | None = None,
        kmeans_func: Callable[..., Any] | None = None,
    ) -> None:
        self.ks = tuple(sorted({as_count(k, "every k of ks") for k in ks}))
        for each in self.ks:  # PML looks for methods by this name
            setattr(self, f"calculate_recall_at_{each}", partial(self._recall, each))
        super().__init__(
            include=include,
            exclude=exclude if len(include) else (*exclude, *_WHOLE_RANKING),
            avg_of_avgs=avg_of_avgs,
            return_per_class=return_per_class,
            k=k,
            device=None if device is None else torch.device(device),
            knn_func=knn_func,
            kmeans_func=kmeans_func,
        )
        self.knn_func = knn_func  # None, where PML has put its own

    def requires_knn(self) -> list[str]:
        """Names of the measures that need neighbours."""
        recalls = [f"recall_at_{k}" for k in self.ks]
        return sorted({*super().requires_knn(), *_WHOLE_RANKING, *recalls})

    def requires_clustering(self) -> list[str]:
        """Names of the measures that need clusters."""
        return [*super().requires_clustering(), "ACC", "ARI"]

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
            query: (Q, D) embeddings, tensor or array.
            query_labels: (Q,) integers.
            reference: (N, D) embeddings that are searched; None (default): the queries, each without itself.
            reference_labels: (N,) integers.
            ref_includes_query: whether the first Q references are the queries.
            include: names of the measures, of those the calculator was made with; empty (default): all.
            exclude: names to leave out.

        Returns:
            Name to number (or to a list of numbers, with `return_per_class`).

        Raises:
            TypeError, ValueError: for embeddings that are not finite, labels that are no integers, shapes
                that do not fit.
        """
        if reference is None:
            reference, reference_labels, ref_includes_query = query, query_labels, True
        table = as_features(reference, "reference")
        asked = table[: len(query)] if reference is query else as_features(query, "query")
        classes = as_class_ids(reference_labels, len(table), "reference_labels")
        query_classes = as_class_ids(query_labels, len(asked), "query_labels")
        if asked.shape[1] != table.shape[1]:
            raise ValueError(f"query must have {table.shape[1]} columns like reference, got {asked.shape}")
        if ref_includes_query and not (
            len(asked) <= len(table)
            and np.array_equal(query_classes, classes[: len(asked)])
            and (reference is query or np.allclose(asked, table[: len(asked)], atol=1e-6))
        ):
            raise ValueError(
                "with ref_includes_query the first references must be the queries, in the same order and "
                "with the same labels: concatenate the queries and the others, in this order"
            )
        self.curr_function_dict = self.get_function_dict(include, exclude)
        names = set(self.get_curr_metrics())
        codes = torch.from_numpy(np.unique(np.concatenate([query_classes, classes]), return_inverse=True)[1])
        kwargs: dict[str, Any] = {
            "query": torch.from_numpy(asked).to(self.device),
            "reference": torch.from_numpy(table).to(self.device),
            "query_labels": codes[: len(asked)].to(self.device),
            "reference_labels": codes[len(asked) :].to(self.device),
            "ref_includes_query": ref_includes_query,
            "label_comparison_fn": self.label_comparison_fn,
        }
        if names & set(self.requires_knn()):
            self.scores = kwargs["scores"] = self._scores(
                table, classes, asked, query_classes, ref_includes_query, names
            )
        if names & set(self.requires_clustering()):
            kwargs["cluster_labels"] = self.get_cluster_labels(**kwargs)
        return self._get_accuracy(self.curr_function_dict, **kwargs)

    def calculate_precision_at_1(self, scores: RetrievalScores, **kwargs: Any) -> Any:
        """Share of queries whose nearest has their class; the same as recall@1."""
        return self._average(scores, scores.hits[1], kwargs)

    def calculate_r_precision(self, scores: RetrievalScores, **kwargs: Any) -> Any:
        """Share of the class among the R nearest."""
        return self._average(scores, scores.r_precisions, kwargs)

    def calculate_mean_average_precision_at_r(self, scores: RetrievalScores, **kwargs: Any) -> Any:
        """MAP@R."""
        return self._average(scores, scores.average_precisions_at_r, kwargs)

    def calculate_mean_average_precision(self, scores: RetrievalScores, **kwargs: Any) -> Any:
        """MAP over the list of length `k`."""
        return self._average(scores, scores.average_precisions, kwargs)

    def calculate_mean_reciprocal_rank(self, scores: RetrievalScores, **kwargs: Any) -> Any:
        """Mean of 1 / rank of the first hit in the list of length `k`."""
        return self._average(scores, scores.reciprocal_ranks, kwargs)

    def calculate_NMI(self, query_labels: Any, cluster_labels: Any, **kwargs: Any) -> float:
        """Normalised mutual information of classes and clusters."""
        return normalized_mutual_information(query_labels, cluster_labels)

    def calculate_AMI(self, query_labels: Any, cluster_labels: Any, **kwargs: Any) -> float:
        """Adjusted mutual information of classes and clusters."""
        return adjusted_mutual_information(query_labels, cluster_labels)

    def calculate_ACC(self, query_labels: Any, cluster_labels: Any, **kwargs: Any) -> float:
        """Clustering accuracy by the best matching of clusters and classes."""
        return clustering_accuracy(query_labels, cluster_labels)

    def calculate_ARI(self, query_labels: Any, cluster_labels: Any, **kwargs: Any) -> float:
        """Adjusted Rand index of classes and clusters."""
        return adjusted_rand_index(query_labels, cluster_labels)

    def _recall(self, k: int, scores: RetrievalScores, **kwargs: Any) -> Any:
        return self._average(scores, scores.hits[k], kwargs)

    def _average(self, scores: RetrievalScores, values: Any, kwargs: dict[str, Any]) -> Any:
        """The mean over queries, or over the means of the classes, or these."""
        if not (self.avg_of_avgs or self.return_per_class):
            return scores.mean(values)
        labels = kwargs["query_labels"].cpu().numpy()
        if not scores.num_queries:
            return [math.nan] * len(np.unique(labels)) if self.return_per_class else math.nan
        codes = np.unique(labels[scores.counted], return_inverse=True)[1]
        means = np.bincount(codes, weights=values[scores.counted]) / np.bincount(codes)
        return means.tolist() if self.return_per_class else float(means.mean())

    def _scores(
        self,
        table: NDArray[np.float32],
        classes: NDArray[np.int64],
        asked: NDArray[np.float32],
        query_classes: NDArray[np.int64],
        own: bool,
        names: set[str],
    ) -> RetrievalScores:
        settings: dict[str, Any] = {
            "ks": [1, *(k for k in self.ks if f"recall_at_{k}" in names)],
            "at_r": bool(names & {"r_precision", "mean_average_precision_at_r"}),
            "depth": self._depth(classes, query_classes, own) if names & set(_WHOLE_RANKING) else None,
        }
        if self.knn_func is not None:
            find = self._finder(self.knn_func, asked, table, own)
            return score_rankings(find, classes, query_classes, own=own, **settings)
        who: dict[str, Any] = {"query_features": asked, "query_labels": query_classes}
        if own:
            who = {"queries": np.arange(len(asked))}
        return retrieval_scores(table, classes, similarity="euclidean", device=self.device, **who, **settings)

    def _depth(self, classes: NDArray[np.int64], query_classes: NDArray[np.int64], own: bool) -> int:
        if self.k is None:
            return max(1, len(classes) - own)
        if self.k != "max_bin_count":
            return int(self.k)
        found, sizes = np.unique(classes, return_counts=True)
        return max(1, int(sizes[np.isin(found, query_classes)].max(initial=0)) - own)

    def _finder(
        self, knn_func: Callable[..., Any], asked: NDArray[np.float32], table: NDArray[np.float32], own: bool
    ) -> Finder:
        """PML's kind of search, for blocks of queries."""
        reference = torch.from_numpy(table).to(self.device)
        queries = torch.from_numpy(asked).to(self.device)

        def find(rows: NDArray[np.int64], k: int) -> NDArray[np.int64]:
            found = []
            for who in torch.from_numpy(rows).to(self.device).split(max(1, _DISTANCES // len(table))):
                index = knn_func(queries[who], k + own, reference)[
                    1
                ]  # (B, k), or k + 1 with the query itself
                if own:
                    others_first = (index == who[:, None]).to(torch.uint8).argsort(dim=1, stable=True)
                    index = index.gather(1, others_first)[:, :k]
                found.append(index.cpu().numpy())
            lists = np.concatenate(found)
            if lists.shape != (len(rows), k) or lists.max() >= len(table):
                raise ValueError(
                    f"knn_func must give {k + own} indices in 0..{len(table) - 1} for a query: does it keep "
                    "references of earlier calls (FaissKNN with reset_before=False)?"
                )
            return lists

        return find
