"""Classes never seen, found again by their nearest neighbors: recall@k on CUB, Cars, SOP, Omniglot, a folder.

The first half of the classes is learned from without labels, the second half tested on. A folder has a
subfolder for each class, or labels.csv. Without --data-root figures are drawn, each athlete a class.
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
    kinds = ("cub", "cars", "sop", "omniglot", "folder")
    add("--data-root", type=Path, metavar="FOLDER", help="of one of the data sets, or of images")
    add("--dataset", choices=kinds, help="what the folder holds; default: by its files")
    add("--no-nmi", action="store_true", help="leave out the clustering of the test images")


LINE = CommandLine(
    "retrieval",
    examples=(
        "python benchmarks/retrieval.py                                       # drawn figures",
        "python benchmarks/retrieval.py --data-root CUB_200_2011 --method kmeans udml-ss posets supervised",
        "python benchmarks/retrieval.py --data-root IMAGES --method hog-views",
    ),
    add_data=add_data,
    layer="embedding",
    plain=("pixels", "hog", "hog-lda", "hog-views", "start"),
    learned=LEARNED,
    default=("hog", "random", "kmeans", "udml-ss", "posets"),
    first="hog",  # what shows is not a person in the middle
    recipe={"fc_dim": 512},  # of the embedding, as published
)


def parse(arguments: Sequence[str] | None = None) -> Options:
    found = read_arguments(LINE, __doc__, arguments)
    if found.data.data_root is None and found.data.dataset is not None:
        raise ValueError(f"--dataset {found.data.dataset} needs --data-root, its folder")
    return found


if __name__ == "__main__":  # --help and wrong arguments are answered before torch is imported
    common.told(parse, "retrieval.py")

from dataclasses import dataclass

import numpy as np

from benchmarks.core import session
from benchmarks.core.results import Result
from benchmarks.core.task import LabeledTask, Score, check_size, draw, root_name
from benchmarks.data import zero_shot
from benchmarks.data.labeled_images import LabeledImages
from pml_posets.evaluation import normalized_mutual_information, retrieval_scores
from pml_posets.grouping.kmeans import KMeansGrouping
from pml_posets.neighbors.nearest import search
from pml_posets.plots import Tile, image_rows

CLUSTERS = 100  # of k-means, where nobody says, as published for CUB and Cars
QUERIES, NEAREST = 4, 8  # in the picture
SHOWN = ("hog", "init", "random", "posets", "checkpoint", "supervised")  # in the picture, four at most
PUBLISHED = {  # recall@1; what marks them says, see MARKS
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


@dataclass
class Neighbors:
    """For the picture: (Q,) rows of tested images, (Q, k) rows of the nearest, -1 for none, and cosines."""

    queries: np.ndarray
    indices: np.ndarray
    cosines: np.ndarray


class Retrieval(LabeledTask):
    """Recall@k and more among the images of classes that were not learned from.

    Raises:
        ValueError: for a class on both sides, fewer than two classes to test on, or none of two images; for
            the method supervised with fewer than two classes to learn from.
    """

    measure = "recall_1"

    def __init__(self, data: LabeledImages, options: Options) -> None:
        super().__init__(data_name(options), data, options, CLUSTERS)
        self.kind = kind_of(options)
        self.nmi = not options.data.no_nmi
        self.ks = (1, 10, 100, 1000) if self.kind == "sop" else (1, 2, 4, 8)
        self.columns = {
            **{f"recall_{k}": f"R@{k}" for k in self.ks},
            **({"nmi": "NMI"} if self.nmi else {}),
            "map_at_r": "MAP@R",
            "r_precision": "R-precision",
        }
        self.paper = PUBLISHED.get(self.kind, {})
        self.paper_title = "published R@1" if self.paper else ""
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
        rows = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
        cosines = np.einsum("qd,qkd->qk", rows[queries], rows[nearest])
        return Score(metrics, Neighbors(queries, nearest, cosines))

    def scored_settings(self) -> dict[str, Any]:
        """Which images are scored, of how many classes, and whether they are clustered."""
        return {**super().scored_settings(), "num_test_classes": self.num_classes, "nmi": self.nmi}

    def notes(self, results: list[Result]) -> list[str]:
        """What was scored, and what published figures are worth here."""
        options = self.options
        return [
            f"Here: {self.name}, {self.num_classes} classes to test on, {len(self.labels)} images; "
            f"{options.recipe.trunk}, {self.seen()} The first similarities: {options.first}. "
            "The last iteration counts.",
            *(MARKS if self.paper else ()),
            *([RECONSTRUCTED] if any(row.method == "tac-ccl" for row in results) else ()),
        ]

    def pictures(self, shown: Mapping[str, Neighbors]) -> dict[str, Any]:
        """Some images, and those nearest to them."""
        methods = [name for name in SHOWN if name in shown][:4] or list(shown)[:4]
        if not methods:
            return {}
        images, rows_of = self.tested.images, self.data.test.tolist()
        rows: dict[str, list[Tile]] = {}
        for number, query in enumerate(shown[methods[0]].queries.tolist()):
            for method in methods:
                near = shown[method]
                row = [self.tile(images[query], rows_of[query], "query", "tab:red")]
                for found, r in zip(near.indices[number].tolist(), near.cosines[number], strict=True):
                    if found >= 0:
                        same = "tab:green" if self.labels[found] == self.labels[query] else None
                        row.append(self.tile(images[found], rows_of[found], f"cosine {r:.2f}", same))
                rows[self.row_name(rows_of[query], method)] = row
        title = "Images of unseen classes (red) and the nearest others (green: the same class)"
        return {"neighbors": image_rows(rows, title)}


def kind_of(options: Options) -> zero_shot.Kind:
    """What the folder holds."""
    if options.data.data_root is None:
        return "folder"
    return options.data.dataset or zero_shot.kind_of(options.data.data_root)


def data_name(options: Options) -> str:
    """The data set, or the name of the folder."""
    return zero_shot.NAMES.get(kind_of(options), root_name(options.data))


def prepare(options: Options) -> Retrieval:
    """Read the data, or draw them."""
    given = options.data
    if given.data_root is None:
        data = zero_shot.load_figures(draw(options.data), "athletes")
    else:
        data = zero_shot.load(kind_of(options), given.data_root, given.skip_unreadable)
    print(data.summary(), flush=True)
    check_size(len(data.train), f"the half of {data.name} to learn from holds only", options, CLUSTERS)
    return Retrieval(data, options)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)
    return session.run(chosen, data_name(chosen), prepare)


if __name__ == "__main__":
    common.run_command(main, "retrieval.py")
