"""The task of retrieval.py: classes that were never seen, found again by their nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core.options import RunOptions
from benchmarks.core.session import Score
from benchmarks.data import zero_shot as zero_shot_data
from benchmarks.data.labelled_images import LabelledImages
from benchmarks.tasks.labelled import LabelledTask
from benchmarks.tasks.postures import check_size, draw
from pml_posets.evaluation import normalized_mutual_information, retrieval_scores
from pml_posets.grouping.kmeans import KMeansGrouping
from pml_posets.neighbors.nearest import search

CLUSTERS = 100  # of k-means, where nobody says, as published for CUB and Cars
KS = {"sop": (1, 10, 100, 1000)}
QUERIES, NEAREST = 4, 8  # in the picture


@dataclass(frozen=True)
class RetrievalOptions(RunOptions):
    """What retrieval.py was asked for. `data_root` None: drawn figures, whose classes are athletes."""

    kind: zero_shot_data.Kind
    data_root: Path | None
    nmi: bool
    skip_unreadable: bool
    figures: str

    @property
    def ks(self) -> tuple[int, ...]:
        """The k of recall@k."""
        return KS.get(self.kind, (1, 2, 4, 8))


@dataclass
class Neighbours:
    """What the picture shows: some of the tested images, and their nearest others.

    Args:
        queries: (Q,) rows of the tested images.
        indices: (Q, k) rows of the nearest, -1 for none.
    """

    queries: np.ndarray
    indices: np.ndarray


class Retrieval(LabelledTask):
    """The `Task` of retrieval.py: recall@k and more among the images of classes that were not learned from.

    Args:
        data: its classes to test on are others than those to learn from.
        options: of the run.

    Raises:
        ValueError: for a class on both sides, fewer than two classes to test on, or none of two images; for
            the method supervised with fewer than two classes to learn from.
    """

    measure = "recall_1"

    def __init__(self, data: LabelledImages, options: RetrievalOptions) -> None:
        super().__init__(data_name(options), data, options, CLUSTERS)
        self.options: RetrievalOptions = options
        self.ks, self.nmi = options.ks, options.nmi
        learned = np.unique(data.labels[data.train])
        tested, sizes = np.unique(self.labels, return_counts=True)
        self.num_classes = len(tested)
        both = np.intersect1d(learned, tested)
        if both.size:
            raise ValueError(
                f"{len(both)} classes of {data.name} are on both sides, such as {data.classes[both[0]]}: "
                "the classes to test on must be others (train/ and test/ with folders of other names, or no "
                "such division)"
            )
        if self.num_classes < 2:
            raise ValueError(
                f"{data.name} has {self.num_classes} class to test on, of {len(data.classes)}: retrieval "
                "needs two, so give three classes or more"
            )
        if sizes.max() < 2:
            raise ValueError(f"no class to test on in {data.name} has two images: nothing could be found")
        if "supervised" in options.methods and len(learned) < 2:
            raise ValueError(f"--method supervised needs two classes to learn from, {data.name} has one")

    def measured(self, features: np.ndarray) -> Score:
        """Recall@k, MAP@R, R-precision; NMI of k-means with as many clusters as classes."""
        device = self.options.device
        found = retrieval_scores(features, self.labels, self.ks, device=device)
        metrics = {f"recall_{k}": value for k, value in found.recall.items()}
        metrics |= {"map_at_r": found.map_at_r, "r_precision": found.r_precision}
        if self.nmi:
            clusters = KMeansGrouping(self.num_classes).fit_predict(features)
            metrics["nmi"] = normalized_mutual_information(self.labels, clusters)
        queries = np.linspace(0, len(features) - 1, QUERIES + 2).astype(int)[1:-1]
        nearest = search(features, NEAREST, queries=queries, device=device).indices
        return Score(metrics, Neighbours(queries, nearest))

    def scored_settings(self) -> dict[str, Any]:
        """Which images are scored, and of how many classes."""
        return {**super().scored_settings(), "num_test_classes": self.num_classes}


def data_name(options: RetrievalOptions) -> str:
    """What the data are called in the results."""
    if options.data_root is None:
        return f"figures-{options.figures}"
    return zero_shot_data.NAMES.get(options.kind, options.data_root.resolve().name)


def prepare(options: RetrievalOptions) -> Retrieval:
    """Read the data, or draw them.

    Raises:
        OSError, ValueError: for data that are missing, damaged, not split by classes, or too few for a batch.
    """
    if options.data_root is None:
        data = zero_shot_data.load_figures(draw(options, options.figures), "athletes")
    else:
        data = zero_shot_data.load(options.kind, options.data_root, options.skip_unreadable)
    print(data.summary(), flush=True)
    check_size(len(data.train), f"the half of {data.name} to learn from holds only", options, CLUSTERS)
    return Retrieval(data, options)
