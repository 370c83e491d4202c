"""The task of voc.py: objects to learn from without labels, whose labels then tell the classes of others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.core.described import Described
from benchmarks.core.learning import Start
from benchmarks.core.options import RunOptions
from benchmarks.core.session import Score
from benchmarks.data.labelled_images import Chosen, LabelledImages, load_folder
from benchmarks.data.voc import load_voc
from benchmarks.measures.voting import Votes, knn_vote
from benchmarks.tasks.postures import check_size
from pml_posets.data.datasets import WithViews
from pml_posets.data.image_store import ImageStore
from pml_posets.features.network import extract

SETS = ("trainval", "test")  # VOC's image sets to learn from and to test on


@dataclass(frozen=True)
class ObjectOptions(RunOptions):
    """What voc.py was asked for."""

    dataset: str
    data_root: Path
    num_votes: int
    train_set: str
    test_set: str
    download: bool
    skip_unreadable: bool


class Objects:
    """Labelled images: the `Task` of voc.py. Labels of the train half vote, and are not learned from.

    Args:
        data: images, labels, split.
        options: of the run.

    Attributes:
        name: of the data.
        data: as given.
        described: its images without a network.
    """

    measure: str = "accuracy"
    digits: int = 3

    def __init__(self, data: LabelledImages, options: ObjectOptions) -> None:
        self.name, self.data, self.options = data_name(options), data, options
        flips = options.recipe.mirror_images
        self.unlabelled = Described(Chosen(data.images, data.train), options, flips=flips)
        self.described = Described(data.images, options, background=self.unlabelled)

    @property
    def images(self) -> ImageStore:
        """Of the train half."""
        return self.unlabelled.images

    @cached_property
    def start(self) -> Start:
        """The first similarities of the train half."""
        return self.unlabelled.start(None)

    def views(self, image_size: int) -> WithViews:
        """Views of images to learn from, augmented as the recipe says."""
        return self.unlabelled.views(image_size)

    def plain(self, method: str) -> Score:
        """The most frequent class, or a vote by HOG."""
        labels = self.data.labels
        if method == "majority":
            most = np.bincount(labels[self.data.train]).argmax()
            return Score(self._metrics(np.full(len(self.data.test), most)))
        return self._voted(self.described.hog(self.options.initial if method == "start" else method)[0])

    def score(self, network: torch.nn.Module, image_size: int) -> Score:
        """A vote by a network's features."""
        features = extract(
            network,
            self.described.images_of(image_size),
            batch_size=256,
            device=self.options.device,
            amp=self.options.amp,
            progress=self.options.progress,
        )
        return self._voted(features)

    def _voted(self, features: np.ndarray) -> Score:
        data = self.data
        votes: Votes = knn_vote(
            features[data.test], features[data.train], data.labels[data.train], self.options.num_votes
        )
        return Score(self._metrics(votes.classes), votes)

    def _metrics(self, predicted: np.ndarray) -> dict[str, float]:
        """The share of right classes, of all objects and of each class; and the mean over the classes."""
        true = self.data.labels[self.data.test]
        right = predicted == true
        by_class = {
            f"accuracy/{name}": float(right[true == c].mean())
            for c, name in enumerate(self.data.classes)
            if (true == c).any()
        }
        mean = float(np.mean(list(by_class.values())))
        return {"accuracy": float(right.mean()), "class_accuracy": mean, **by_class}

    def origin(self) -> dict[str, Any]:
        """Which images are learned from."""
        return {key: value for key, value in self.data.settings().items() if key != "left_out"}

    def plain_settings(self, method: str) -> dict[str, Any]:
        """Of HOG."""
        if method == "majority":
            return {}
        return self.described.settings(method)

    def scored_settings(self) -> dict[str, Any]:
        """Who is scored, and how many vote."""
        return {**self.data.settings(), "num_votes": self.options.num_votes}


def data_name(options: ObjectOptions) -> str:
    """What the data are called in the results: VOC, and its image sets if they are not the usual ones."""
    if options.dataset != "voc":
        return options.data_root.resolve().name
    sets = (options.train_set, options.test_set)
    return "voc2007" if sets == SETS else f"voc2007 {sets[0]}, tested on {sets[1]}"


def prepare(options: ObjectOptions) -> Objects:
    """Read the data.

    Raises:
        OSError, ValueError: for data that are missing, damaged, or too few for a batch.
    """
    if options.dataset == "voc":
        sets = (options.train_set, options.test_set)
        data = load_voc(options.data_root, "2007", *sets, options.download, options.skip_unreadable)
    else:
        data = load_folder(options.data_root, "images", options.skip_unreadable)
    print(data.summary(), flush=True)
    if options.num_votes > len(data.train):
        raise ValueError(f"--votes must be at most {len(data.train)}, the images to learn from")
    check_size(len(data.train), f"the half of {data.name} to learn from holds only", options)
    return Objects(data, options)
