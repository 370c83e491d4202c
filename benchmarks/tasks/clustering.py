"""The task of clustering.py: k-means on features, and how well its clusters match the classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core.options import RunOptions
from benchmarks.core.session import Score
from benchmarks.data import clustering as cluster_data
from benchmarks.data import zero_shot as zero_shot_data
from benchmarks.data.labelled_images import LabelledImages
from benchmarks.tasks.labelled import LabelledTask
from benchmarks.tasks.postures import check_size, draw
from pml_posets.evaluation import adjusted_rand_index, clustering_accuracy, normalized_mutual_information
from pml_posets.features.reduction import principal_components
from pml_posets.grouping.kmeans import KMeansGrouping

WIDTH = 256  # principal directions of features without a network that k-means is given, unless --components
SHOWN, NEAREST = 6, 8  # in the picture


@dataclass(frozen=True)
class ClusteringOptions(RunOptions):
    """What clustering.py was asked for. `data_root` None: drawn figures, whose classes are sports."""

    kind: cluster_data.Kind
    data_root: Path | None
    num_starts: int
    download: bool
    skip_unreadable: bool
    figures: str


class Clustering(LabelledTask):
    """The `Task` of clustering.py: K is the number of classes; that is all that is used of the labels.

    Features without a network (pixels, HOG) are brought down to their first principal directions, as
    k-means in thousands of dimensions takes long.

    Args:
        data: every image on both sides.
        options: of the run.

    Raises:
        ValueError: for fewer than two classes.
    """

    measure = "acc"

    def __init__(self, data: LabelledImages, options: ClusteringOptions) -> None:
        if len(data.classes) < 2:
            raise ValueError(f"{data.name} has one class alone: clustering needs two or more")
        super().__init__(data_name(options), data, options, len(data.classes))
        self.options: ClusteringOptions = options
        self.width = options.components or WIDTH

    def plain(self, method: str) -> Score:
        """Pixels, or HOG in one of its kinds, in its first principal directions."""
        return self.measured(principal_components(self.described(method), self.width))

    def measured(self, features: np.ndarray) -> Score:
        """ACC, NMI and ARI of k-means."""
        means = KMeansGrouping(self.num_clusters, num_starts=self.options.num_starts)
        clusters = means.fit_predict(features)
        metrics = {
            "acc": clustering_accuracy(self.labels, clusters),
            "nmi": normalized_mutual_information(self.labels, clusters),
            "ari": adjusted_rand_index(self.labels, clusters),
        }
        largest = np.argsort(-np.bincount(clusters, minlength=self.num_clusters), kind="stable")[:SHOWN]
        distances = ((features - means.centers_[clusters]) ** 2).sum(axis=1)
        shown = {}
        for cluster in largest.tolist():
            members = np.flatnonzero(clusters == cluster)
            shown[cluster] = members[np.argsort(distances[members], kind="stable")[:NEAREST]]
        return Score(metrics, shown)

    def plain_settings(self, method: str) -> dict[str, Any]:
        """Of pixels or HOG."""
        return {**super().plain_settings(method), "width": self.width}

    def scored_settings(self) -> dict[str, Any]:
        """Which images are scored, and how they are clustered."""
        found = {"clusters": self.num_clusters, "num_starts": self.options.num_starts}
        return {**super().scored_settings(), **found}


def data_name(options: ClusteringOptions) -> str:
    """What the data are called in the results."""
    if options.data_root is None:
        return f"figures-{options.figures}"
    return options.data_root.resolve().name if options.kind == "folder" else options.kind


def prepare(options: ClusteringOptions) -> Clustering:
    """Read the data, or draw them.

    Raises:
        OSError, ValueError: for data that are missing, damaged, or too few for a batch.
    """
    if options.data_root is None:
        figures = zero_shot_data.load_figures(draw(options, options.figures), "sports")
        data = cluster_data.every_image(figures)
    else:
        data = cluster_data.load(options.kind, options.data_root, options.download, options.skip_unreadable)
    print(f"{data.name}: {len(data)} images of {len(data.classes)} classes", flush=True)
    check_size(len(data), f"{data.name} holds only", options, len(data.classes))
    return Clustering(data, options)
