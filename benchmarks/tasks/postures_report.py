"""What olympic.py shows at its end: the table beside the paper's, and the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core.common import Result, summary, table, write_text
from benchmarks.core.described import Pair
from benchmarks.core.report import losses, score_table
from benchmarks.core.session import Outcome
from benchmarks.measures.postures import RetrievalResult
from benchmarks.tasks.postures import Postures
from pml_posets.plots import Tile, image_rows, roc_curves, save_figure
from pml_posets.training.joint import JointTrainer

# Table 1 of the paper: mean AUC on Olympic Sports, 227 px. Their cliques began from ImageNet weights; their
# triplets are Shuffle & Learn.
PAPER = {
    "hog-lda": "0.62",
    "alexnet-imagenet": "0.65",
    "cliques": "0.83",
    "triplet": "0.63",
    "posets": "0.78",
}


class PostureReport:
    """The `Report` of olympic.py; pictures are of the first seed.

    Args:
        postures: the task.
    """

    def __init__(self, postures: Postures) -> None:
        self.postures = postures
        self.rocs: dict[str, RetrievalResult] = {}
        self.trainers: dict[str, JointTrainer] = {}
        self.features: dict[str, Pair] = {}

    def add(self, method: str, outcome: Outcome) -> None:
        """Note a method: its curves, its trainer if it learned; features of the untrained and the trained."""
        shown = outcome.score.shown
        self.rocs[method] = shown.roc
        if outcome.joint is not None:
            self.trainers[method] = outcome.joint
        moment = {"random": "before", "posets": "after"}.get(method)
        if moment is not None:
            self.features[moment] = shown.features

    def write(self, folder: Path, results: list[Result]) -> str:
        """Write table.md and the pictures; returns the main table."""
        postures = self.postures
        main = score_table(results, {"auc": "AUC"}, PAPER, "paper (Olympic Sports)")
        write_text(folder / "table.md", f"{main}\n\n{category_table(results)}\n")
        curves = {name: (roc.mean.fpr, roc.mean.tpr) for name, roc in self.rocs.items()}
        save_figure(roc_curves(curves, title=f"Posture retrieval, {postures.name}"), folder / "roc.png")
        trained = {name: joint for name, joint in self.trainers.items() if joint.history}
        if trained:
            save_figure(losses(trained), folder / "loss.png")
        if "after" in self.features:
            save_figure(_neighbours(self.features, postures), folder / "neighbours.png")
            rows = _posets(self.features["after"][0], postures)
            if rows:
                title = "Posets: between two frames of a sequence (red), frames of other sequences in order"
                save_figure(image_rows(rows, title), folder / "posets.png")
        return main


def category_table(results: Sequence[Result]) -> str:
    """AUC of each category (mean over seeds) for each method."""
    names = sorted({key for r in results for key in r.metrics if key.startswith("auc/")})
    methods = list(dict.fromkeys(r.method for r in results))
    by_name = {name: summary(results, name) for name in names}
    rows = [
        [
            name.removeprefix("auc/"),
            *(f"{by_name[name][m][0]:.3f}" if m in by_name[name] else "" for m in methods),
        ]
        for name in names
    ]
    return table(["category", *methods], rows)


def _neighbours(features: Mapping[str, Pair], postures: Postures, num_queries: int = 5, k: int = 7) -> Any:
    """Queries, and their nearest labelled frames of other sources before and after training."""
    tree = postures.tree
    used = np.flatnonzero(np.abs(features["after"][0]).sum(1) > 0)
    labels = tree.dataset_labels()
    names = sorted(labels)
    picked = [names[i] for i in np.linspace(0, len(names) - 1, min(num_queries, len(names))).astype(int)]
    rows: dict[str, list[Tile]] = {}
    moments = {when: features[when] for when in ("before", "after") if when in features}
    for name in picked:
        query = int(labels[name].anchors[len(labels[name].anchors) // 2])
        others = used[tree.sources[used] != tree.sources[query]]
        for when, (plain, mirrored) in moments.items():
            scores = np.stack([plain[others] @ plain[query], mirrored[others] @ plain[query]])
            best = np.argsort(-scores.max(0), kind="stable")
            best = best[_first_of_each(tree.sources[others[best]])][:k]
            row = [Tile(postures.images[query], name, "tab:red")]
            for i in best:
                image = postures.images[int(others[i])]
                flip = scores[1, i] > scores[0, i]
                same = tree.frame_categories[others[i]] == tree.frame_categories[query]
                caption = f"{scores[:, i].max():.2f}{' flip' if flip else ''}"
                row.append(Tile(image.flip(-1) if flip else image, caption, "tab:green" if same else None))
            rows[f"{name}\n{when}"] = row
    return image_rows(rows, "Nearest frames of other sources (green: the same category)")


def _first_of_each(values: np.ndarray) -> np.ndarray:
    """Where each value comes for the first time, in order."""
    return np.sort(np.unique(values, return_index=True)[1])


def _posets(
    features: np.ndarray, postures: Postures, gap: int = 8, num_rows: int = 3
) -> dict[str, list[Tile]]:
    """Fig. 5: two frames of one sequence, `gap` apart; frames of other sources between them, in order.

    The order is by the difference of the similarities to the two ends. The frames shown are, at evenly spaced
    differences, those most similar to both ends together, one a source. Of up to `num_rows` categories the
    sequence is shown whose two frames differ most.
    """
    tree = postures.tree
    used = np.flatnonzero(np.abs(features).sum(1) > 0)
    widest: dict[int, tuple[float, np.ndarray]] = {}  # by category: how far the ends differ, the frames
    for sequence in np.unique(tree.sequences[used]):
        frames = np.flatnonzero(tree.sequences == sequence)
        frames = frames[np.argsort(tree.frame_numbers[frames], kind="stable")]
        for start in np.flatnonzero(np.isin(frames[:-gap], used) & np.isin(frames[gap:], used)):
            moment = frames[start : start + gap + 1]
            span = 1 - float(features[moment[0]] @ features[moment[-1]])
            category = int(tree.frame_categories[moment[0]])
            if span > widest.get(category, (0.0, moment))[0]:
                widest[category] = span, moment
    categories = sorted(widest)
    picked = np.linspace(0, len(categories) - 1, min(num_rows, len(categories))).astype(int)
    rows: dict[str, list[Tile]] = {}
    for span, moment in (widest[categories[i]] for i in picked):
        first, last = int(moment[0]), int(moment[-1])
        others = used[tree.sources[used] != tree.sources[first]]
        if len(np.unique(tree.sources[others])) < gap - 1:
            continue  # too few sources to take each once
        to_first, to_last = features[others] @ features[first], features[others] @ features[last]
        between: list[int] = []
        for target in np.linspace(-0.7 * span, 0.7 * span, gap - 1):
            fit = to_last + to_first - 4 * np.abs(to_last - to_first - target)
            fit[np.isin(tree.sources[others], tree.sources[between])] = -np.inf
            between.append(int(others[fit.argmax()]))
        name = tree.sequence_names[int(tree.sequences[first])].rsplit("/", 1)[-1]
        for what, shown, colour in (
            ("its own frames", moment.tolist(), "tab:blue"),
            ("the poset", [first, *between, last], "tab:green"),
        ):
            rows[f"{name}\n{what}"] = [
                Tile(postures.images[i], "", "tab:red" if i in (first, last) else colour) for i in shown
            ]
    return rows
