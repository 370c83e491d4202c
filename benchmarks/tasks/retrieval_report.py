"""What retrieval.py shows at its end: the table beside published figures, and who is nearest to whom."""

from __future__ import annotations

from pathlib import Path

from benchmarks.core.common import Result, write_text
from benchmarks.core.report import losses, score_table, seen
from benchmarks.core.session import Outcome
from benchmarks.tasks.retrieval import Neighbours, Retrieval
from pml_posets.plots import Tile, image_rows, save_figure
from pml_posets.training.joint import JointTrainer

# Recall@1; what marks them says, see MARKS.
PUBLISHED = {
    "cub": {"udml-ss": "0.547 [a]", "stml": "0.606 [b]"},
    "cars": {"udml-ss": "0.451 [b]", "stml": "0.505 [b]"},
    "sop": {"udml-ss": "0.635 [b]", "stml": "0.653 [b]"},
}
MARKS = (
    "Published: GoogLeNet with ImageNet weights, 227 px, an embedding of 512; another set-up than ours "
    "unless --trunk googlenet --init FILE --image-size 227.",
    "[a] R@2/4/8 0.669/0.774/0.861, NMI 0.614; the best of 12 checkpoints on the test images, the last has "
    "0.544. Ours is the last.",
    "[b] From a secondary source.",
)
RECONSTRUCTED = "tac-ccl is a reconstruction from the abstract; no published figure could be confirmed."
SHOWN = ("hog", "init", "random", "posets", "checkpoint", "supervised")  # in the picture, four at most


class RetrievalReport:
    """The `Report` of retrieval.py; pictures are of the first seed.

    Args:
        task: what was scored.
    """

    def __init__(self, task: Retrieval) -> None:
        self.task = task
        self.neighbours: dict[str, Neighbours] = {}
        self.trainers: dict[str, JointTrainer] = {}

    def add(self, method: str, outcome: Outcome) -> None:
        """Note the neighbours, and a trainer if it learned."""
        self.neighbours[method] = outcome.score.shown
        if outcome.joint is not None:
            self.trainers[method] = outcome.joint

    def write(self, folder: Path, results: list[Result]) -> str:
        """Write table.md and the pictures; returns the main table."""
        task = self.task
        measures = {f"recall_{k}": f"R@{k}" for k in task.ks}
        if task.nmi:
            measures["nmi"] = "NMI"
        measures |= {"map_at_r": "MAP@R", "r_precision": "R-precision"}
        published = PUBLISHED.get(task.options.kind, {})
        table = score_table(results, measures, published, "published R@1" if published else "")
        notes = [
            f"Here: {task.name}, {task.num_classes} classes to test on, {len(task.labels)} images; "
            f"{task.options.recipe.trunk}, {seen(task.options)} The first similarities: "
            f"{task.options.initial}. The last iteration counts.",
            *(MARKS if published else ()),
            *([RECONSTRUCTED] if any(row.method == "tac-ccl" for row in results) else ()),
        ]
        text = "\n".join([table, "", *notes])
        write_text(folder / "table.md", text + "\n")
        trained = {name: joint for name, joint in self.trainers.items() if joint.history}
        if trained:
            save_figure(losses(trained), folder / "loss.png")
        shown = [name for name in SHOWN if name in self.neighbours] or list(self.neighbours)
        if shown:
            save_figure(self._picture(shown[:4]), folder / "neighbours.png")
        return text

    def _picture(self, methods: list[str]) -> object:
        task, images = self.task, self.task.tested.images
        names = [task.data.classes[c] for c in task.labels]
        rows: dict[str, list[Tile]] = {}
        for place, query in enumerate(self.neighbours[methods[0]].queries):
            for method in methods:
                row = [Tile(images[int(query)], names[query][:18], "tab:red")]
                for found in self.neighbours[method].indices[place]:
                    if found >= 0:
                        same = "tab:green" if task.labels[found] == task.labels[query] else None
                        row.append(Tile(images[int(found)], names[found][:14], same))
                rows[f"image {query}\n{method}"] = row
        return image_rows(rows, "Framed red: an image. Beside it the nearest (green: of its class)")
