"""What clustering.py shows at its end: the table beside published figures, and what the clusters hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.core.common import Result, write_text
from benchmarks.core.report import losses, score_table, seen
from benchmarks.core.session import Outcome
from benchmarks.tasks.clustering import Clustering
from pml_posets.plots import Tile, image_rows, save_figure
from pml_posets.training.joint import JointTrainer

# ConCURL's ACC, NMI and ARI.
PUBLISHED = {
    "imagenet-10": "0.958 / 0.907 / 0.909",
    "imagenet-dogs": "0.695 / 0.630 / 0.531",
    "stl10": "0.749 / 0.636 / 0.566",
    "cifar10": "0.846 / 0.762 / 0.715",
    "cifar100-20": "0.479 / 0.468 / 0.303",
}
MARK = (
    "Published: a ResNet, K prototypes for as many classes, SGD over hundreds of epochs, an embedding of "
    "128; another set-up than ours."
)


class ClusteringReport:
    """The `Report` of clustering.py; pictures are of the first seed.

    Args:
        task: what was scored.
    """

    def __init__(self, task: Clustering) -> None:
        self.task = task
        self.clusters: dict[str, dict[int, np.ndarray]] = {}
        self.trainers: dict[str, JointTrainer] = {}

    def add(self, method: str, outcome: Outcome) -> None:
        """Note the clusters, and a trainer if it learned."""
        self.clusters[method] = outcome.score.shown
        if outcome.joint is not None:
            self.trainers[method] = outcome.joint

    def write(self, folder: Path, results: list[Result]) -> str:
        """Write table.md and the pictures; returns the main table."""
        task = self.task
        measures = {"acc": "ACC", "nmi": "NMI", "ari": "ARI"}
        figures = PUBLISHED.get(task.options.kind)
        published = {} if figures is None else {"concurl": figures}
        table = score_table(results, measures, published, "published ACC / NMI / ARI" if published else "")
        notes = [
            f"Here: {task.name}, {len(task.labels)} images in {task.num_clusters} clusters by k-means "
            f"({task.options.num_starts} starts); {task.options.recipe.trunk}, {seen(task.options)} "
            "The last iteration counts.",
            *([MARK] if published else ()),
        ]
        text = "\n".join([table, "", *notes])
        write_text(folder / "table.md", text + "\n")
        trained = {name: joint for name, joint in self.trainers.items() if joint.history}
        if trained:
            save_figure(losses(trained), folder / "loss.png")
        if self.clusters:
            save_figure(self._picture(list(self.clusters)[-1]), folder / "clusters.png")
        return text

    def _picture(self, method: str) -> object:
        task, images = self.task, self.task.tested.images
        rows = {}
        for cluster, members in self.clusters[method].items():
            names = [task.data.classes[c] for c in task.labels[members]]
            rows[f"cluster {cluster}"] = [
                Tile(images[int(i)], name[:14]) for i, name in zip(members, names, strict=True)
            ]
        return image_rows(rows, f"{method}: the images nearest to the centres of the largest clusters")
