"""Clusters against classes: ACC, NMI, ARI on CIFAR, STL-10, ImageNet-10 and -Dogs, Omniglot, a folder.

All images are learned from, without labels; k-means then makes as many clusters as there are classes. A
folder has a subfolder for each class, or labels.csv. Without --data-root figures are drawn, each sport a
class.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.core import common
from benchmarks.core.options import CommandLine, Options, read_arguments

MARKS = {  # what a folder holds, by a file or folder in it
    "cifar10": "cifar-10-batches-py",
    "cifar100-20": "cifar-100-python",
    "stl10": "stl10_binary",
    "omniglot": "omniglot.npz",
}
DOWNLOADED = ("cifar10", "cifar100-20", "stl10")  # by torchvision


def add_data(add: Callable[..., Any]) -> None:
    kinds = (*DOWNLOADED, "imagenet-10", "imagenet-dogs", "omniglot", "folder")
    add("--data-root", type=Path, metavar="FOLDER", help="of the data")
    add("--dataset", choices=kinds, help="default: by the files in the folder")
    add("--num-starts", type=int, default=20, metavar="N", help="of the k-means that is scored")
    add("--download", action="store_true", help="let torchvision fetch the data first")


LINE = CommandLine(
    "clustering",
    examples=(
        "python benchmarks/clustering.py                           # drawn figures",
        "python benchmarks/clustering.py --dataset cifar10 --data-root FOLDER --download",
        "python benchmarks/clustering.py --data-root IMAGES --method hog-views",
    ),
    add_data=add_data,
    layer="embedding",
    plain=("pixels", "hog", "hog-lda", "hog-views", "start"),
    default=("pixels", "hog", "random", "concurl", "udml-ss", "ntxent", "posets"),
    first="hog",  # what shows is not a person in the middle
    recipe={"fc_dim": 128},  # of the embedding, as published
)


def parse(arguments: Sequence[str] | None = None) -> Options:
    found = read_arguments(LINE, __doc__, arguments)
    data = found.data
    if data.data_root is None and data.dataset is not None:
        raise ValueError(f"--dataset {data.dataset} needs --data-root, its folder")
    if data.download and data.dataset not in DOWNLOADED:
        raise ValueError(f"--download is for --dataset {', '.join(DOWNLOADED)}")
    if data.num_starts < 1:
        raise ValueError(f"--num-starts must be 1 or more, got {data.num_starts}")
    if data.dataset is None:
        root = data.data_root
        is_file = root is not None and root.suffix == ".npz"
        held = [kind for kind, mark in MARKS.items() if root is not None and (root / mark).exists()]
        data.dataset = "omniglot" if is_file else next(iter(held), "folder")
    return found


if __name__ == "__main__":  # --help and wrong arguments are answered before torch is imported
    common.told(parse, "clustering.py")

import numpy as np

from benchmarks.core import session
from benchmarks.core.results import Result
from benchmarks.core.task import LabeledTask, Score, check_size, draw, root_name
from benchmarks.data import clustering as cluster_data
from benchmarks.data import zero_shot
from benchmarks.data.labeled_images import LabeledImages
from pml_posets.evaluation import adjusted_rand_index, clustering_accuracy, normalized_mutual_information
from pml_posets.features.reduction import principal_components
from pml_posets.grouping.kmeans import KMeansGrouping
from pml_posets.plots import Tile, image_rows

WIDTH = 256  # principal directions of features without a network that k-means is given, unless --components
_RANKS = ("largest", "second", "third", "fourth", "fifth", "sixth")  # clusters in the picture, by size
NEAREST = 8  # images of each in the picture
PUBLISHED = {  # ConCURL's ACC, NMI and ARI
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


class Clustering(LabeledTask):
    """Clusters of k-means against classes; K is the number of classes, all that is used of the labels.

    Features without a network (pixels, HOG) are brought down to their first principal directions, as
    k-means in thousands of dimensions takes long.
    """

    measure = "acc"
    columns: Mapping[str, str] = {"acc": "ACC", "nmi": "NMI", "ari": "ARI"}

    def __init__(self, data: LabeledImages, options: Options) -> None:
        if len(data.classes) < 2:
            raise ValueError(f"{data.name} has one class alone: clustering needs two or more")
        super().__init__(data_name(options), data, options, len(data.classes))
        self.width = options.components or WIDTH
        published = PUBLISHED.get(options.data.dataset)
        self.paper = {} if published is None else {"concurl": published}
        self.paper_title = "published ACC / NMI / ARI" if self.paper else ""

    def plain(self, method: str) -> Score:
        """Pixels, or HOG in one of its kinds, in its first principal directions."""
        return self.measured(principal_components(self.described(method), self.width))

    def measured(self, features: np.ndarray) -> Score:
        """ACC, NMI and ARI of k-means."""
        means = KMeansGrouping(self.num_clusters, num_starts=self.options.data.num_starts)
        clusters = means.fit_predict(features)
        metrics = {
            "acc": clustering_accuracy(self.labels, clusters),
            "nmi": normalized_mutual_information(self.labels, clusters),
            "ari": adjusted_rand_index(self.labels, clusters),
        }
        sizes = np.bincount(clusters, minlength=self.num_clusters)
        largest = np.argsort(-sizes, kind="stable")[: len(_RANKS)]
        distances = ((features - means.centers_[clusters]) ** 2).sum(axis=1)
        shown = []
        for members in (np.flatnonzero(clusters == cluster) for cluster in largest):
            nearest = members[np.argsort(distances[members], kind="stable")[:NEAREST]]
            shown.append((self._held(members), nearest.tolist(), np.sqrt(distances[nearest])))
        return Score(metrics, shown)

    def _held(self, members: np.ndarray) -> str:
        """What a cluster holds: how many images, and its most frequent class."""
        counts = np.bincount(self.labels[members])
        name = self.data.classes[counts.argmax()]
        return f"{len(members)} images,\n{counts.max()} of them\n{name[:24]}"

    def plain_settings(self, method: str) -> dict[str, Any]:
        return {**super().plain_settings(method), "width": self.width}

    def scored_settings(self) -> dict[str, Any]:
        """Which images are scored, and how they are clustered."""
        found = {"clusters": self.num_clusters, "num_starts": self.options.data.num_starts}
        return {**super().scored_settings(), **found}

    def notes(self, results: list[Result]) -> list[str]:
        """What was clustered, and what published figures are worth here."""
        options = self.options
        return [
            f"Here: {self.name}, {len(self.labels)} images in {self.num_clusters} clusters by k-means "
            f"({options.data.num_starts} starts); {options.recipe.trunk}, {self.seen()} "
            "The last iteration counts.",
            *([MARK] if self.paper else ()),
        ]

    def pictures(self, shown: Mapping[str, list[tuple[str, list[int], np.ndarray]]]) -> dict[str, Any]:
        """What the largest clusters of the last method hold."""
        if not shown:
            return {}
        method, images, rows_of = list(shown)[-1], self.tested.images, self.data.test.tolist()
        rows: dict[str, list[Tile]] = {}
        for rank, (held, nearest, distances) in zip(_RANKS, shown[method], strict=False):
            rows[f"{rank} cluster:\n{held}"] = [
                self.tile(images[i], rows_of[i], f"distance {distance:.2f}")
                for i, distance in zip(nearest, distances, strict=True)
            ]
        title = f"Clusters of {method}: the images nearest to each center, and their distances from it"
        return {"clusters": image_rows(rows, title)}


def data_name(options: Options) -> str:
    """The data set, or the name of the folder."""
    kind = options.data.dataset
    return root_name(options.data) if kind == "folder" else kind


def prepare(options: Options) -> Clustering:
    """Read the data, or draw them."""
    given = options.data
    if given.data_root is None:
        data = cluster_data.every_image(zero_shot.load_figures(draw(options.data), "sports"))
    else:
        data = cluster_data.load(given.dataset, given.data_root, given.download, given.skip_unreadable)
    print(f"{data.name}: {len(data)} images of {len(data.classes)} classes", flush=True)
    check_size(len(data), f"{data.name} holds only", options, len(data.classes))
    return Clustering(data, options)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)
    return session.run(chosen, data_name(chosen), prepare)


if __name__ == "__main__":
    common.run_command(main, "clustering.py")
