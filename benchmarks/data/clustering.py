"""Data of clustering.py: every image is learned from without its label, and clustered.

CIFAR-10, CIFAR-100 with its 20 coarse classes, STL-10: both labeled parts, as torchvision unpacks them
ImageNet-10, ImageNet-Dogs: a folder with a subfolder for each of the 10 or 15 classes
Omniglot                    omniglot.npz; the classes are its alphabets
a folder                    see `labeled_images.load_folder`
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from benchmarks.data.images import ArrayImages
from benchmarks.data.labeled_images import LabeledImages, load_folder, numbered
from benchmarks.data.zero_shot import load_omniglot

Kind = Literal["cifar10", "cifar100-20", "stl10", "imagenet-10", "imagenet-dogs", "omniglot", "folder"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CLASSES = {"imagenet-10": 10, "imagenet-dogs": 15}  # how many a folder must hold
TORCHVISION = ("cifar10", "cifar100-20", "stl10")


def load(kind: Kind, root: Path, download: bool = False, skip_unreadable: bool = False) -> LabeledImages:
    """Data of any kind; all images are on both sides of the "split".

    Args:
        kind: which.
        root: folder that torchvision unpacks to, of the classes' folders, or of omniglot.npz.
        download: let torchvision fetch its data sets first.
        skip_unreadable: decode every file of a folder now, and leave out those that cannot be.
    """
    if kind in TORCHVISION:
        return _of_torchvision(kind, root, download)
    if kind == "omniglot":
        data = load_omniglot(root)
        alphabets = [data.classes[c].partition("/")[0] for c in data.labels]
        labels, classes = numbered(alphabets)
        return every_image(replace(data, labels=labels, classes=classes))
    data = every_image(load_folder(root, "classes", skip_unreadable))
    if kind in CLASSES and len(data.classes) != CLASSES[kind]:
        raise ValueError(
            f"{kind} has {CLASSES[kind]} classes, {root} has {len(data.classes)}: give the folder that holds "
            "theirs, or --dataset folder"
        )
    return data


def every_image(data: LabeledImages) -> LabeledImages:
    """The same data with every image to learn from and to test on."""
    everything = np.arange(len(data))
    return replace(data, train=everything, test=everything)


def _of_torchvision(kind: str, root: Path, download: bool) -> LabeledImages:
    """Both labeled parts of a data set of torchvision, one behind the other."""
    from torchvision import datasets

    try:
        if kind == "stl10":
            parts = [datasets.STL10(str(root), split, download=download) for split in ("train", "test")]
            pixels = np.concatenate([part.data for part in parts]).transpose(0, 2, 3, 1)
            labels = np.concatenate([part.labels for part in parts])
            classes: Sequence[str] = parts[0].classes
        else:
            found = datasets.CIFAR10 if kind == "cifar10" else datasets.CIFAR100
            parts = [found(str(root), train, download=download) for train in (True, False)]
            pixels = np.concatenate([part.data for part in parts])
            labels, classes = np.concatenate([part.targets for part in parts]), parts[0].classes
    except (RuntimeError, OSError, ValueError, LookupError, pickle.UnpicklingError) as error:
        raise FileNotFoundError(
            f"{kind} is not in {root}, or damaged ({error}): unpack it there as torchvision does, or give "
            "--download"
        ) from error
    if kind == "cifar100-20":
        labels, classes = _coarse(root / "cifar-100-python")
    names = tuple(
        f"{part}/{i}" for part, one in zip(("train", "test"), parts, strict=True) for i in range(len(one))
    )
    everything = np.arange(len(pixels))
    return LabeledImages(
        name=kind,
        images=ArrayImages(np.ascontiguousarray(pixels)),
        labels=np.asarray(labels, np.int64),
        classes=tuple(classes),
        train=everything,
        test=everything,
        names=names,
    )


def _coarse(folder: Path) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The 20 coarse classes, which torchvision leaves out; it has checked these very files just now."""
    tables = []
    for name in ("train", "test", "meta"):
        with open(folder / name, "rb") as file:
            tables.append(pickle.load(file, encoding="latin1"))
    labels = np.concatenate([table["coarse_labels"] for table in tables[:2]])
    return labels.astype(np.int64), list(tables[2]["coarse_label_names"])
