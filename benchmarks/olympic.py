"""Posture retrieval: mean AUC over categories on Olympic Sports, or any tree in its layout (Table 1).

Without --data-root figures are drawn. No label is used in training, but by supervised, of true poses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.core import common
from benchmarks.core.methods import LEARNED
from benchmarks.core.options import CommandLine, Options, read_arguments


def add_data(add: Callable[..., Any]) -> None:
    add("--data-root", type=Path, metavar="TREE", help="a tree in the Olympic Sports layout")
    add("--categories", nargs="+", metavar="NAME", help="use these categories only")
    says = "gives targets and first groups: start, motion (default); motion-groups: groups alone"
    choices = ("start", "motion", "motion-groups")
    add("--teacher", choices=choices, default="motion", metavar="TEACHER", help=says)


LINE = CommandLine(
    "olympic",
    examples=(
        "python benchmarks/olympic.py                                  # drawn figures, some minutes",
        "python benchmarks/olympic.py --data-root TREE --method all    # your frames",
        "python benchmarks/olympic.py --data-root TREE --method triplet --output runs/olympic --resume",
    ),
    add_data=add_data,
    layer="fc7",
    preset="postures",
    drawn="clips",
    plain=("hog", "hog-lda", "hog-views", "start"),
    networks=("random", "alexnet-imagenet", "checkpoint", "init"),
    learned=LEARNED,
    poses=True,
    default=("hog-lda", "start", "random", "posets"),
)


def parse(arguments: Sequence[str] | None = None) -> Options:
    return read_arguments(LINE, __doc__, arguments)


if __name__ == "__main__":  # --help and wrong arguments are answered before torch is imported
    common.told(parse, "olympic.py")

from functools import cached_property

import numpy as np
import torch
from torch.utils.data import Subset

from benchmarks.core import session
from benchmarks.core.described import Described, Pair
from benchmarks.core.groupings import Start
from benchmarks.core.results import Result, summary, table
from benchmarks.core.task import Score, Task, check_size, draw, root_name
from benchmarks.data.olympic import OlympicFrames, OlympicTree, load_tree
from benchmarks.measures.postures import retrieval_report
from pml_posets.data.cache import digest
from pml_posets.plots import Tile, image_rows, roc_curves


class Postures(Task):
    """The frames of a tree, scored by its posture labels: cosines, of mirror images where asked."""

    measure = "auc"
    columns: Mapping[str, str] = {"auc": "AUC"}
    mirror = True
    # Mean AUC on Olympic Sports, 227 px. Their cliques began from ImageNet weights; their triplets are
    # Shuffle & Learn.
    paper: Mapping[str, str] = {
        "hog-lda": "0.62",
        "alexnet-imagenet": "0.65",
        "cliques": "0.83",
        "triplet": "0.63",
        "posets": "0.78",
    }
    paper_title = "paper (Olympic Sports)"

    def __init__(self, tree: OlympicTree, options: Options) -> None:
        super().__init__(data_name(options), options, Described(OlympicFrames(tree), options))
        self.tree = tree
        self.labels = tree.dataset_labels()

    @cached_property
    def start(self) -> Start:
        teacher, where = self.options.data.teacher, (self.tree.sources, self.tree.times)
        found = self.unlabeled.motion(*where) if teacher != "start" else self.unlabeled.start(*where)
        if teacher == "motion-groups":
            first = self.unlabeled.start(*where)
            # Without mirrored features a frame and its mirror image have the same row.
            found.targets = first.features, first.features if first.mirrored is None else first.mirrored
        return self.knowing_poses(found, self.tree.joints)

    def score(self, network: torch.nn.Module, image_size: int) -> Score:
        """The frames that the labels name, alone, are embedded."""
        named = [x for one in self.labels.values() for x in (one.anchors, *one.pos_ids, *one.neg_ids)]
        needed = np.unique(np.concatenate(named))
        found = self.extract(network, Subset(self.tested.images_of(image_size), needed.tolist()))
        both = np.zeros((2, len(self.tree), found[0].shape[1]), np.float32)
        both[:, needed] = found
        return self.measured(self.with_start((both[0], both[1])))

    def measured(self, features: Pair) -> Score:
        """The AUC of each category, and their mean."""
        roc = retrieval_report(features[0], self.labels, mirrored=features[1])
        by_category = {f"auc/{name}": auc for name, auc in roc.per_category.items()}
        return Score({"auc": roc.auc, **by_category}, (features, roc))

    def origin(self) -> dict[str, Any]:
        names = digest(list(self.tree.categories), list(self.tree.names))[:16]
        teacher = self.options.data.teacher
        return {"data": self.name, "frames": len(self.tree), "frame_names": names, "teacher": teacher}

    def scored_settings(self) -> dict[str, Any]:
        frames = {key: value for key, value in self.origin().items() if key != "teacher"}
        return {**frames, "left_out": len(self.tree.excluded)}

    def notes(self, results: list[Result]) -> list[str]:
        """The AUC of each category (mean over seeds), and what training was worth in words."""
        found = summary(results)["mean"].unstack("method", sort=False)
        found = found[found.index.str.startswith("auc/")].sort_index()
        rows = [
            [name.removeprefix("auc/"), *("" if np.isnan(auc) else f"{auc:.3f}" for auc in row)]
            for name, row in zip(found.index, found.to_numpy(), strict=True)
        ]
        categories = table(["category", *found.columns], rows)
        said = "\n".join(verdict(results))
        return [categories, "", said] if said else [categories]

    def pictures(self, shown: Mapping[str, Any]) -> dict[str, Any]:
        """ROC curves; nearest frames of the untrained and the trained network; posets, the paper's Fig. 5."""
        curves = {name: (roc.mean.fpr, roc.mean.tpr) for name, (_, roc) in shown.items()}
        found = {"roc": roc_curves(curves, title=f"Posture retrieval on {self.name}\nmean of all categories")}
        moments = {"random": "untrained", "posets": "trained"}
        features = {moments[name]: shown[name][0] for name in moments if name in shown}
        if "posets" in shown:
            title = "Frames (red) and the nearest frames of other sources (green: the same category)"
            found["neighbors"] = image_rows(self._neighbors(features), title)
            rows = self._posets(shown["posets"][0][0])
            if rows:
                title = "Posets: between two frames of a sequence (red), frames of others in order (green)"
                found["posets"] = image_rows(rows, title)
        return found

    def _neighbors(
        self, features: Mapping[str, Pair], num_queries: int = 5, k: int = 7
    ) -> dict[str, list[Tile]]:
        """Queries, and their nearest labeled frames of other sources, untrained and trained."""
        tree = self.tree
        used = np.flatnonzero(np.abs(features["trained"][0]).sum(1) > 0)
        names = sorted(self.labels)
        picked = [names[i] for i in np.linspace(0, len(names) - 1, min(num_queries, len(names))).astype(int)]
        rows: dict[str, list[Tile]] = {}
        for name in picked:
            query = int(self.labels[name].anchors[len(self.labels[name].anchors) // 2])
            others = used[tree.sources[used] != tree.sources[query]]
            for when, (plain, mirrored) in features.items():
                scores = np.stack([plain[others] @ plain[query], mirrored[others] @ plain[query]])
                best = np.argsort(-scores.max(0), kind="stable")
                best = best[_first_of_each(tree.sources[others[best]])][:k]
                row = [Tile(self.images[query], f"query\n{self._named(query)}", "tab:red")]
                for i in best:
                    image = self.images[int(others[i])]
                    flip = scores[1, i] > scores[0, i]
                    same = tree.frame_categories[others[i]] == tree.frame_categories[query]
                    caption = f"cosine {scores[:, i].max():.2f}\n{self._named(int(others[i]))}"
                    caption += ", mirrored" if flip else ""
                    row.append(
                        Tile(image.flip(-1) if flip else image, caption, "tab:green" if same else None)
                    )
                rows[f"{name}\n{when}"] = row
        return rows

    def _posets(self, features: np.ndarray, gap: int = 8, num_rows: int = 3) -> dict[str, list[Tile]]:
        """Fig. 5: two frames of one sequence, `gap` apart, and frames of other sequences between them.

        These are ordered by the difference of their similarities to the two ends: at evenly spaced
        differences those most similar to both ends together, one a source.
        """
        tree = self.tree
        used = np.flatnonzero(np.abs(features).sum(1) > 0)
        widest = _widest_moments(features, used, tree, gap)
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
            for what, frames, color in (
                ("its own frames", moment.tolist(), "tab:blue"),
                ("the poset", [first, *between, last], "tab:green"),
            ):
                rows[f"{name}\n{what}"] = [
                    Tile(self.images[i], self._named(i), "tab:red" if i in (first, last) else color)
                    for i in frames
                ]
        return rows

    def _named(self, index: int) -> str:
        """The end of a sequence's name, and the number of the frame in it."""
        sequence = self.tree.sequence_names[int(self.tree.sequences[index])]
        return f"{sequence.rsplit('/', 1)[-1][-16:]}\nframe {self.tree.frame_numbers[index]}"


def _first_of_each(values: np.ndarray) -> np.ndarray:
    return np.sort(np.unique(values, return_index=True)[1])


def _widest_moments(
    features: np.ndarray, used: np.ndarray, tree: OlympicTree, gap: int
) -> dict[int, tuple[float, np.ndarray]]:
    """By category: the frames of one sequence whose first and last differ most, and by how much."""
    widest: dict[int, tuple[float, np.ndarray]] = {}
    for sequence in np.unique(tree.sequences[used]):
        frames = np.flatnonzero(tree.sequences == sequence)
        frames = frames[np.argsort(tree.frame_numbers[frames], kind="stable")]
        for start in np.flatnonzero(np.isin(frames[:-gap], used) & np.isin(frames[gap:], used)):
            moment = frames[start : start + gap + 1]
            span = 1 - float(features[moment[0]] @ features[moment[-1]])
            category = int(tree.frame_categories[moment[0]])
            if span > widest.get(category, (0.0, moment))[0]:
                widest[category] = span, moment
    return widest


def verdict(results: Sequence[Result]) -> list[str]:
    """What training was worth, a line each: posets against other methods and its own first round, by seed.

    The only seed of a method stands for all.
    """
    mine = {r.seed: r.metrics for r in results if r.method == "posets"}
    others: dict[str, dict[int, float]] = {}
    for r in results:
        if r.method != "posets":
            others.setdefault(r.method, {})[r.seed] = r.metrics["auc"]
    rivals = {
        name: {seed: found.get(seed, next(iter(found.values()))) for seed in mine}
        for name, found in others.items()
    }
    for name, moment in (("the same network before training", 0), ("its own first round", 1)):
        at, after = f"auc_round_{moment}", f"auc_round_{moment + 1}"  # scored, and then trained further
        earlier = {seed: found[at] for seed, found in mine.items() if {at, after} <= found.keys()}
        if mine and len(earlier) == len(mine):
            rivals[name] = earlier
    lines = []
    for name, values in rivals.items():
        gaps = [metrics["auc"] - values[seed] for seed, metrics in mine.items()]
        if gaps:
            above = sum(gap > 0 for gap in gaps)
            lines.append(
                f"posets against {name}: {np.mean(gaps):+.3f} AUC, above it in {above} of {len(gaps)} seeds"
            )
    return lines


def data_name(options: Options) -> str:
    """The tree's name, and its categories if not all were asked for."""
    name, categories = root_name(options.data), options.data.categories
    return name if categories is None else f"{name}: {', '.join(sorted(set(categories)))}"


def prepare(options: Options) -> Postures:
    """Read the tree, or draw one."""
    data = options.data
    categories = None if data.categories is None else tuple(data.categories)
    root = draw(options.data) if data.data_root is None else data.data_root
    tree = load_tree(root, categories=categories, skip_unreadable=data.skip_unreadable)
    print(tree.summary(), flush=True)
    for excluded in tree.excluded:
        print(f"  left out: {excluded}")
    check_size(len(tree), f"{tree.root} holds only", options)
    return Postures(tree, options)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)
    return session.run(chosen, data_name(chosen), prepare)


if __name__ == "__main__":
    common.run_command(main, "olympic.py")
