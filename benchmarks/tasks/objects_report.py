"""What voc.py shows at its end: the table beside the paper's, and who voted for whom."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.core.common import Result, write_text
from benchmarks.core.report import losses, score_table, seen
from benchmarks.core.session import Outcome
from benchmarks.measures.voting import Votes
from benchmarks.tasks.objects import Objects
from pml_posets.plots import Tile, image_rows, save_figure
from pml_posets.training.joint import JointTrainer

# Table 5 of the paper: accuracy on VOC 2007.
PAPER = {
    "hog-lda": "0.118",
    "triplet": "0.450 (Wang and Gupta)",
    "cliques": "0.481",
    "posets": "0.510",
    "alexnet-imagenet": "0.616",
}
SHOWN = ("random", "hog-lda", "posets", "checkpoint")  # in the picture


class ObjectReport:
    """The `Report` of voc.py; pictures are of the first seed.

    Args:
        objects: the task.
    """

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.votes: dict[str, Votes] = {}
        self.trainers: dict[str, JointTrainer] = {}

    def add(self, method: str, outcome: Outcome) -> None:
        """Note who voted, and a trainer if it learned."""
        if outcome.score.shown is not None:
            self.votes[method] = outcome.score.shown
        if outcome.joint is not None:
            self.trainers[method] = outcome.joint

    def write(self, folder: Path, results: list[Result]) -> str:
        """Write table.md and the pictures; returns the main table."""
        measures = {"accuracy": "accuracy", "class_accuracy": "mean of classes"}
        table = score_table(results, measures, PAPER, "paper (VOC 2007)")
        data, options = self.objects.data, self.objects.options
        notes = [
            f"Here: {self.objects.name}, {options.num_votes} nearest of {len(data.train)} vote on "
            f"{len(data.test)}; {seen(options)} The first similarities: {options.initial}.",
            "The paper: the object boxes of VOC 2007, 5 votes, 227 px, fc6. Its posets began from the "
            "network and the similarities of the triplets (Wang and Gupta), with 1000 classes of 8.",
        ]
        text = "\n".join([table, "", *notes])
        write_text(folder / "table.md", text + "\n")
        trained = {name: joint for name, joint in self.trainers.items() if joint.history}
        if trained:
            save_figure(losses(trained), folder / "loss.png")
        shown = [name for name in SHOWN if name in self.votes]
        if shown:
            save_figure(self._neighbours(shown), folder / "neighbours.png")
        return text

    def _neighbours(self, methods: list[str], num_queries: int = 5) -> object:
        data, images = self.objects.data, self.objects.described.images
        rows: dict[str, list[Tile]] = {}
        for query in np.linspace(0, len(data.test) - 1, num_queries + 2).astype(int)[1:-1]:
            index = int(data.test[query])
            name = data.classes[data.labels[index]][:18]
            for method in methods:
                row = [Tile(images[index], name, "tab:red")]
                for found in data.train[self.votes[method].indices[query]]:
                    same = data.labels[found] == data.labels[index]
                    caption = data.classes[data.labels[found]][:14]
                    row.append(Tile(images[int(found)], caption, "tab:green" if same else None))
                rows[f"object {query}\n{method}"] = row
        return image_rows(rows, "Framed red: an object. Beside it those that vote (green: the same class)")
