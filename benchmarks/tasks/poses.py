"""The task of lsp.py: images to learn from without labels, people whose poses their nearest tell."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.core.described import Described, Pair
from benchmarks.core.learning import Start
from benchmarks.core.options import RunOptions
from benchmarks.core.session import Score
from benchmarks.data.labelled_images import Chosen
from benchmarks.data.olympic import OlympicFrames, load_tree
from benchmarks.data.people import JoinedImages, PoseData
from benchmarks.data.poses import load_figures, load_lsp, load_lspet
from benchmarks.measures.copied import CopiedPoses, copy_poses
from benchmarks.measures.pose import pcp
from benchmarks.measures.skeletons import mirror_joints
from benchmarks.tasks.postures import check_size, draw
from pml_posets.data.cache import digest
from pml_posets.data.datasets import WithViews
from pml_posets.data.image_store import ImageStore
from pml_posets.features.network import extract

NEIGHBORS = 20  # whose poses the heat maps show
PIXELS = 32  # side of the images that --method pixels compares


@dataclass(frozen=True)
class PoseOptions(RunOptions):
    """What lsp.py was asked for. `data_root` None: drawn figures; no `train_roots`: their train half."""

    data_root: Path | None
    train_roots: tuple[Path, ...]
    skip_unreadable: bool
    figures: str


@dataclass
class Pool:
    """Images to learn from, without labels.

    Args:
        name: of where they come from.
        images: PIL images, with a `data_id`.
        names: of the images, the same wherever they lie.
        sources: (N,) what they were cut from; None: each its own.
    """

    name: str
    images: Any
    names: list[str]
    sources: np.ndarray | None = None


class Poses:
    """People with poses, and a pool to learn from: the `Task` of lsp.py.

    A test person takes the pose of the nearest train person or mirrored train person.

    Args:
        people: with all that is annotated.
        pool: to learn from.
        options: of the run.

    Attributes:
        name: of the data, and of the pool if that is another.
        gallery: people whose poses are copied: those to learn from with every joint annotated.
        incomplete: how many were left out of it.
    """

    measure: str = "pcp_total"
    digits: int = 1

    def __init__(self, people: PoseData, pool: Pool, options: PoseOptions) -> None:
        self.people, self.pool, self.options = people, pool, options
        self.name = data_name(options)
        self.unlabelled = Described(pool.images, options)
        self.described = Described(people.images, options, background=self.unlabelled)
        complete = people.visible[people.train].all(axis=1)
        self.gallery = people.train[complete]
        self.incomplete = int((~complete).sum())
        if not len(self.gallery):
            raise ValueError(f"nobody to learn from in {people.name} has every joint annotated")

    @property
    def images(self) -> ImageStore:
        """Of the pool."""
        return self.unlabelled.images

    @cached_property
    def start(self) -> Start:
        """The first similarities of the pool."""
        return self.unlabelled.start(self.pool.sources)

    def views(self, image_size: int) -> WithViews:
        """Views of images to learn from, augmented as the recipe says."""
        return self.unlabelled.views(image_size)

    def plain(self, method: str) -> Score:
        """Poses by what needs no network."""
        if method == "oracle":
            copied = self._nearest_by_pose()
            return self._judged(copied.joints[:, 0], copied)
        if method == "mean-pose":
            joints = self.people.joints[self.gallery]
            both = np.concatenate([joints, mirror_joints(joints, self.people.skeleton)])
            return self._judged(np.repeat(both.mean(0)[None], len(self.people.test), 0), None)
        if method == "pixels":
            return self.scored(_pixels(self.described.images_of(PIXELS), self.gallery))
        return self.scored(self.described.hog(self.options.initial if method == "start" else method))

    def score(self, network: torch.nn.Module, image_size: int) -> Score:
        """Poses by a network's features."""
        features = extract(
            network,
            self.described.images_of(image_size),
            batch_size=256,
            device=self.options.device,
            mirror=True,
            amp=self.options.amp,
            progress=self.options.progress,
        )
        return self.scored(features)

    def scored(self, features: Pair) -> Score:
        """PCP of the copied poses: cosine similarity, mirror images in the gallery."""
        plain, mirrored = features
        people = self.people
        copied = copy_poses(
            plain[people.test],
            plain[self.gallery],
            people.joints[self.gallery],
            mirrored[self.gallery],
            people.skeleton,
            k=min(NEIGHBORS, 2 * len(self.gallery)),
        )
        return self._judged(copied.joints[:, 0], copied)

    def _judged(self, predicted: np.ndarray, shown: CopiedPoses | None) -> Score:
        people = self.people
        found = pcp(predicted, people.joints[people.test], people.skeleton)
        parts = {f"pcp/{part}": value for part, value in found.parts.items()}
        return Score({"pcp_total": found.total, **parts, "sticks_left_out": found.num_excluded}, shown)

    def _nearest_by_pose(self) -> CopiedPoses:
        """The ground truth: the gallery's poses with the smallest mean distance of joints."""
        people = self.people
        joints = people.joints[self.gallery]
        gallery = np.concatenate([joints, mirror_joints(joints, people.skeleton)])  # (2G, J, 2)
        k = min(NEIGHBORS, len(gallery))
        nearest = [
            np.argsort(np.nanmean(np.linalg.norm(gallery - true, axis=2), axis=1), kind="stable")[:k]
            for true in people.joints[people.test]
        ]
        indices = np.stack(nearest)
        return CopiedPoses(indices, indices >= len(self.gallery), gallery[indices])

    def origin(self) -> dict[str, Any]:
        """Which images are learned from."""
        names = str(digest(self.pool.names)[:16])
        return {"pool": self.pool.name, "images": len(self.pool.images), "image_names": names}

    def plain_settings(self, method: str) -> dict[str, Any]:
        """Of HOG."""
        if method in ("oracle", "mean-pose"):
            return {}
        if method == "pixels":
            return {"side": PIXELS}
        return {**self.described.settings(method), "background": self.pool.name}

    def scored_settings(self) -> dict[str, Any]:
        """Who is scored."""
        return {**self.people.settings(), "gallery": len(self.gallery), "mirrored_gallery": True}


def _pixels(store: ImageStore, gallery: np.ndarray) -> Pair:
    """(N, D) float32 of the images and the mirrored ones, less the mean of the gallery's both."""
    images = np.stack([store[i].numpy() for i in range(len(store))]).astype(np.float32)
    mean = images[gallery].mean(0)
    mean = (mean + mean[..., ::-1]) / 2
    plain, mirrored = ((x - mean).reshape(len(images), -1) for x in (images, images[..., ::-1]))
    return plain, mirrored


def data_name(options: PoseOptions) -> str:
    """What the data are called in the results: the people, and what was learned from if it is not of them."""
    name = f"figures-{options.figures}" if options.data_root is None else options.data_root.resolve().name
    return f"{name}, learned on {pool_name(options)}" if options.train_roots else name


def pool_name(options: PoseOptions) -> str:
    """The folders that are learned from."""
    return "+".join(root.resolve().name for root in options.train_roots)


def prepare(options: PoseOptions) -> Poses:
    """Read the people and the pool, or draw them.

    Raises:
        OSError, ValueError: for data that are incomplete, unreadable, or too few for a batch.
    """
    if options.data_root is None:
        people = load_figures(draw(options, options.figures))
    else:
        people = load_lsp(options.data_root, skip_unreadable=options.skip_unreadable)
    print(people.summary(), flush=True)
    pool = read_pool(people, options)
    print(f"learned from: {pool.name}, {len(pool.images)} images", flush=True)
    check_size(len(pool.images), f"{pool.name} holds only", options)
    return Poses(people, pool, options)


def read_pool(people: PoseData, options: PoseOptions) -> Pool:
    """The images of the `train_roots`; without any, those of the people to learn from.

    Raises:
        OSError, ValueError: for a folder that is none of the known kinds, or is damaged.
    """
    if not options.train_roots:
        return _train_half(people)
    pools = [_unlabelled(root, people, options) for root in options.train_roots]
    sources, total = [], 0
    for pool in pools:
        own = np.arange(len(pool.images)) if pool.sources is None else pool.sources
        found, own = np.unique(own, return_inverse=True)
        sources.append(own + total)
        total += len(found)
    names = [f"{pool.name}/{name}" for pool in pools for name in pool.names]
    images = JoinedImages([pool.images for pool in pools])
    return Pool(pool_name(options), images, names, np.concatenate(sources))


def _unlabelled(root: Path, people: PoseData, options: PoseOptions) -> Pool:
    """The images of one folder; it says what the folder holds."""
    if options.data_root is not None and root.resolve() == options.data_root.resolve():
        return _train_half(people)
    name, skip = root.resolve().name, options.skip_unreadable
    if (root / "image_pathes").is_dir():
        tree = load_tree(root, skip_unreadable=skip)
        print("\n".join([tree.summary(), *(f"  left out: {gone}" for gone in tree.excluded)]), flush=True)
        names = [
            f"{tree.sequence_names[s]} {frame}" for s, frame in zip(tree.sequences, tree.names, strict=True)
        ]
        return Pool(name, OlympicFrames(tree), names, tree.sources)
    first_half = any((root / "images").glob("im????.*"))  # im0001.jpg; im00001.jpg in the extended set
    data = (load_lsp if first_half else load_lspet)(root, skip_unreadable=skip)
    print(data.summary(), flush=True)
    return _train_half(data)


def _train_half(people: PoseData) -> Pool:
    """The people to learn from; frames of one drawn clip share their source."""
    images, train = people.images, people.train
    sources = images.tree.sources[train] if isinstance(images, OlympicFrames) else None
    return Pool(people.name, Chosen(images, train), [people.names[i] for i in train], sources)
