"""Object classes by a vote of the nearest objects: PASCAL VOC 2007, or a folder of images (Table 5).

A folder has a subfolder for each class, or labels.csv. The half to learn from is learned from without labels;
its labels vote.
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

SETS = ("trainval", "test")  # VOC's image sets to learn from and to test on


def add_data(add: Callable[..., Any]) -> None:
    add("--data-root", type=Path, required=True, help="folder of VOCdevkit/, or of images")
    kinds = ("voc", "folder")
    add("--dataset", choices=kinds, help="default: voc if the folder holds VOCdevkit/")
    add("--votes", type=int, default=5, metavar="N", help="nearest neighbors that vote; default: 5")
    add("--train-set", metavar="SET", help=f"VOC's image set to learn from; default: {SETS[0]}")
    add("--test-set", metavar="SET", help=f"VOC's image set to test on; default: {SETS[1]}")
    add("--download", action="store_true", help="fetch VOC into --data-root first")


LINE = CommandLine(
    "voc",
    examples=(
        "python benchmarks/voc.py --data-root FOLDER_OF_VOCdevkit",
        "python benchmarks/voc.py --data-root IMAGES --method majority hog posets",
        "python benchmarks/voc.py --data-root IMAGES --method checkpoint --checkpoint FILE",
    ),
    add_data=add_data,
    layer="fc6",
    plain=("majority", "hog", "hog-lda", "hog-views", "start"),
    networks=("random", "alexnet-imagenet", "checkpoint", "init"),
    learned=LEARNED,
    default=("hog-lda", "start", "random", "posets"),
    recipe={"num_classes": 1000, "mean_size": 8.0},  # of the surrogate classes, as in the paper
    draws=False,
)


def parse(arguments: Sequence[str] | None = None) -> Options:
    found = read_arguments(LINE, __doc__, arguments)
    data = found.data
    if data.votes < 1:
        raise ValueError(f"--votes must be 1 or more, got {data.votes}")
    of_voc = data.download or data.train_set is not None or data.test_set is not None
    if data.dataset is None:
        root = data.data_root
        subfolders = root.is_dir() and any(path.is_dir() for path in root.iterdir())
        images = subfolders or (root / "labels.csv").is_file()
        holds_voc = (root / "VOCdevkit").is_dir()
        data.dataset = "folder" if images and not holds_voc and not of_voc else "voc"
    if data.dataset == "folder" and of_voc:
        raise ValueError("--download, --train-set and --test-set are for --dataset voc")
    data.train_set, data.test_set = data.train_set or SETS[0], data.test_set or SETS[1]
    return found


if __name__ == "__main__":  # --help and wrong arguments are answered before torch is imported
    common.told(parse, "voc.py")

import numpy as np

from benchmarks.core import session
from benchmarks.core.described import Described
from benchmarks.core.results import Result
from benchmarks.core.task import LabeledTask, Score, check_size
from benchmarks.data.labeled_images import LabeledImages, load_folder
from benchmarks.data.voc import load_voc
from benchmarks.measures.voting import Votes, knn_vote
from pml_posets.plots import Tile, image_rows

SHOWN = ("hog", "hog-lda", "random", "init", "posets", "checkpoint")  # in the picture, four at most


class Objects(LabeledTask):
    """Labeled images, of which those to learn from vote on those to test on."""

    measure = "accuracy"
    columns: Mapping[str, str] = {"accuracy": "accuracy", "class_accuracy": "mean of classes"}
    paper: Mapping[str, str] = {  # accuracy on VOC 2007
        "hog-lda": "0.118",
        "triplet": "0.450 (Wang and Gupta)",
        "cliques": "0.481",
        "posets": "0.510",
        "alexnet-imagenet": "0.616",
    }
    paper_title = "paper (VOC 2007)"

    def __init__(self, data: LabeledImages, options: Options) -> None:
        super().__init__(data_name(options), data, options, num_clusters=100)
        self.tested = Described(data.images, options, background=self.unlabeled)

    def plain(self, method: str) -> Score:
        """The most frequent class, or a vote by HOG."""
        if method != "majority":
            return super().plain(method)
        most = np.bincount(self.data.labels[self.data.train]).argmax()
        return Score(self._metrics(np.full(len(self.data.test), most)))

    def measured(self, features: np.ndarray) -> Score:
        """The accuracy of the vote, by features of all images."""
        data = self.data
        votes: Votes = knn_vote(
            features[data.test], features[data.train], data.labels[data.train], self.options.data.votes
        )
        return Score(self._metrics(votes.classes), votes)

    def _metrics(self, predicted: np.ndarray) -> dict[str, float]:
        """The share of right classes, of all objects and of each class; and the mean over the classes."""
        right = predicted == self.labels
        by_class = {
            f"accuracy/{name}": float(right[self.labels == c].mean())
            for c, name in enumerate(self.data.classes)
            if (self.labels == c).any()
        }
        mean = float(np.mean(list(by_class.values())))
        return {"accuracy": float(right.mean()), "class_accuracy": mean, **by_class}

    def scored_settings(self) -> dict[str, Any]:
        return {**self.data.settings(), "num_votes": self.options.data.votes}

    def notes(self, results: list[Result]) -> list[str]:
        """What differs from the paper."""
        data, options = self.data, self.options
        return [
            f"Here: {self.name}, {options.data.votes} nearest of {len(data.train)} vote on "
            f"{len(data.test)}; {self.seen()} The first similarities: {options.first}.",
            "The paper: the object boxes of VOC 2007, 5 votes, 227 px, fc6. Its posets began from the "
            "network and the similarities of the triplets (Wang and Gupta), with 1000 classes of 8.",
        ]

    def pictures(self, shown: Mapping[str, Votes]) -> dict[str, Any]:
        """Some objects, and those that voted for them."""
        methods = [name for name in SHOWN if name in shown][:4]
        if not methods:
            return {}
        data, images = self.data, self.tested.images
        rows: dict[str, list[Tile]] = {}
        for query in np.linspace(0, len(data.test) - 1, 7).astype(int)[1:-1]:
            index = int(data.test[query])
            for method in methods:
                votes = shown[method]
                row = [self.tile(images[index], index, "query", "tab:red")]
                near = zip(data.train[votes.indices[query]].tolist(), votes.correlations[query], strict=True)
                for found, r in near:
                    same = "tab:green" if data.labels[found] == data.labels[index] else None
                    row.append(self.tile(images[found], found, f"correlation {r:.2f}", same))
                rows[self.row_name(index, method)] = row
        title = "Objects (red) and the nearest, which vote on their class (green: the same class)"
        return {"neighbors": image_rows(rows, title)}


def data_name(options: Options) -> str:
    """VOC, and its image sets if they are not the usual ones; or the folder's name."""
    data = options.data
    if data.dataset != "voc":
        return data.data_root.resolve().name
    sets = (data.train_set, data.test_set)
    return "voc2007" if sets == SETS else f"voc2007 {sets[0]}, tested on {sets[1]}"


def prepare(options: Options) -> Objects:
    """Read the data."""
    given = options.data
    if given.dataset == "voc":
        sets = (given.train_set, given.test_set)
        data = load_voc(given.data_root, "2007", *sets, given.download, given.skip_unreadable)
    else:
        data = load_folder(given.data_root, "images", given.skip_unreadable)
    print(data.summary(), flush=True)
    if given.votes > len(data.train):
        raise ValueError(f"--votes must be at most {len(data.train)}, the images to learn from")
    check_size(len(data.train), f"the half of {data.name} to learn from holds only", options)
    return Objects(data, options)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)
    return session.run(chosen, data_name(chosen), prepare)


if __name__ == "__main__":
    common.run_command(main, "voc.py")
