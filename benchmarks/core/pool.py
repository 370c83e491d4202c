"""What lsp.py learns from: the images of one or several folders."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core.options import Options
from benchmarks.core.task import root_name
from benchmarks.data.images import Chosen, JoinedImages
from benchmarks.data.olympic import OlympicFrames, load_tree
from benchmarks.data.people import PoseData
from benchmarks.data.poses import load_lsp, load_lspet


@dataclass
class Pool:
    """Images to learn from.

    Args:
        name: of where they come from.
        images: PIL images, with a `data_id`.
        names: of the images, the same wherever they lie.
        sources: (N,) what they were cut from; None: each its own.
        joints: (N, J, 2), NaN where not annotated, for the method supervised alone; None: not known.
        joint_names: their J names; empty where the files give none.
    """

    name: str
    images: Any
    names: list[str]
    sources: np.ndarray | None = None
    joints: np.ndarray | None = None
    joint_names: tuple[str, ...] = ()


def read_pool(people: PoseData, options: Options) -> Pool:
    """Images of --train-root, or of the people to learn from; if --transductive, those to test on as well."""
    given = options.data
    if not given.train_root and not given.transductive:
        return _half(people, people.train)
    pools = [_unlabeled(root, people, options) for root in given.train_root] or [_half(people, people.train)]
    if given.transductive:
        hidden = _half(people, people.test)
        hidden.joints = np.full_like(people.joints[people.test], np.nan)
        pools.append(hidden)
    sources, total = [], 0
    for pool in pools:
        own = np.arange(len(pool.images)) if pool.sources is None else pool.sources
        found, own = np.unique(own, return_inverse=True)
        sources.append(own + total)
        total += len(found)
    names = [f"{pool.name}/{name}" for pool in pools for name in pool.names]
    images = JoinedImages([pool.images for pool in pools])
    joined = Pool(pool_name(given), images, names, np.concatenate(sources))
    joints = [pool.joints for pool in pools if pool.joints is not None]
    orders = {pool.joint_names for pool in pools}
    agree = len(pools) == 1 or (len(orders) == 1 and () not in orders)
    if len(joints) == len(pools) and agree:
        joined.joints, joined.joint_names = np.concatenate(joints), pools[0].joint_names
    return joined


def _unlabeled(root: Path, people: PoseData, options: Options) -> Pool:
    """The images of one folder; it says what the folder holds."""
    given = options.data
    if given.data_root is not None and root.resolve() == given.data_root.resolve():
        return _half(people, people.train)
    if (root / "image_pathes").is_dir():
        tree = load_tree(root, skip_unreadable=given.skip_unreadable)
        print("\n".join([tree.summary(), *(f"  left out: {gone}" for gone in tree.excluded)]), flush=True)
        names = [
            f"{tree.sequence_names[s]} {frame}" for s, frame in zip(tree.sequences, tree.names, strict=True)
        ]
        joints, joint_names = tree.joints, tree.joint_names
        return Pool(root.resolve().name, OlympicFrames(tree), names, tree.sources, joints, joint_names)
    first_half = any((root / "images").glob("im????.*"))  # im0001.jpg; im00001.jpg in the extended set
    data = (load_lsp if first_half else load_lspet)(root, skip_unreadable=given.skip_unreadable)
    print(data.summary(), flush=True)
    return _half(data, data.train)


def _half(people: PoseData, half: np.ndarray) -> Pool:
    """Some of the people, by their indices; frames of one drawn clip share their source."""
    images = people.images
    sources = images.tree.sources[half] if isinstance(images, OlympicFrames) else None
    names = [people.names[i] for i in half]
    joints, joint_names = people.joints[half], people.skeleton.joints
    return Pool(people.name, Chosen(images, half), names, sources, joints, joint_names)


def pool_name(given: argparse.Namespace) -> str:
    """The names of what is learned from; empty for the train half of --data-root alone."""
    names = [root.resolve().name for root in given.train_root]
    return "+".join([*(names or [root_name(given)]), "test images"] if given.transductive else names)
