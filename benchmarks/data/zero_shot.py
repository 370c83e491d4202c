"""Data of retrieval.py: images of classes, half of which are learned from without their labels.

CUB-200-2011, Cars-196, Stanford Online Products (SOP)     as PML reads them
Omniglot        omniglot.npz: packed drawings, labels, class_names, evaluation
a folder        see `labeled_images.load_folder`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pytorch_metric_learning.datasets.cars196 import Cars196
from pytorch_metric_learning.datasets.cub import CUB
from pytorch_metric_learning.datasets.sop import StanfordOnlineProducts

from benchmarks.data.files import read_arrays
from benchmarks.data.images import PackedDrawings
from benchmarks.data.labeled_images import LabeledImages, load_folder, readable, within
from benchmarks.data.olympic import OlympicFrames, load_tree

Kind = Literal["cub", "cars", "sop", "omniglot", "folder"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PUBLISHED: dict[Kind, tuple[str, Any, str, int]] = {  # name, PML's reader, what it looks for, images
    "cub": ("cub200", CUB, "CUB_200_2011", 11_788),
    "cars": ("cars196", Cars196, "anno_train.csv", 16_185),
    "sop": ("sop", StanfordOnlineProducts, "Stanford_Online_Products", 120_053),
}
NAMES: dict[Kind, str] = {**{kind: row[0] for kind, row in PUBLISHED.items()}, "omniglot": "omniglot"}


def kind_of(root: Path) -> Kind:
    """What a folder holds, by its files."""
    for kind, (_, _, mark, _) in PUBLISHED.items():
        if (root / mark).exists() or root.resolve().name == mark:
            return kind
    return "omniglot" if root.suffix == ".npz" or (root / "omniglot.npz").is_file() else "folder"


def load(kind: Kind, root: Path, skip_unreadable: bool = False) -> LabeledImages:
    """Data of any kind, split by classes; of Omniglot `root` may be the file."""
    if kind == "folder":
        return load_folder(root, "classes", skip_unreadable)
    if kind == "omniglot":
        return load_omniglot(root)
    return load_published(kind, root, skip_unreadable)


def load_published(kind: Kind, root: Path, skip_unreadable: bool = False) -> LabeledImages:
    """CUB, Cars or SOP as PML reads and splits it: the first half of the classes is learned from.

    `root` is the folder that PML is given, or the one that it looks for there.
    """
    name, reader, mark, count = PUBLISHED[kind]
    home = Path(root).resolve().parent if Path(root).resolve().name == mark else Path(root)
    try:
        parts = [reader(str(home), split=split) for split in ("train", "test")]
    except (OSError, ValueError, LookupError) as error:
        raise ValueError(
            f"{root} does not hold {name} as pytorch-metric-learning reads it ({error}): give the folder "
            f"that holds {mark}, or its images in a folder a class (--dataset folder)"
        ) from error
    paths = [Path(path) for part in parts for path in part.paths]
    if len(paths) != count:
        raise ValueError(f"the tables of {name} in {home} list {len(paths)} of {count} images: unpack them")
    ids = np.array([label for part in parts for label in part.labels])
    missing = [] if skip_unreadable else [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} images of {name} are missing, the first is {missing[0]}: unpack "
            "them there, or leave them out by --skip-unreadable"
        )
    images, kept, excluded = readable(paths, home, skip_unreadable)
    learned = (np.arange(len(paths)) < len(parts[0].paths))[kept]
    found, labels = np.unique(ids[kept], return_inverse=True)
    folders = {} if kind == "sop" else {int(c): path.parent.name for c, path in zip(ids, paths, strict=True)}
    return LabeledImages(
        name=name,
        images=images,
        labels=labels.astype(np.int64),
        classes=tuple(folders.get(int(c), str(c)) for c in found),
        train=np.flatnonzero(learned),
        test=np.flatnonzero(~learned),
        names=tuple(within(home, path) for path in images.paths),
        excluded=excluded,
    )


def load_omniglot(root: Path) -> LabeledImages:
    """Omniglot: characters of the background alphabets are learned from, of the evaluation ones tested on.

    `root` is omniglot.npz, or its folder. The classes are its characters, "<alphabet>/<character>".
    """
    path = Path(root) / "omniglot.npz" if Path(root).is_dir() else Path(root)
    arrays = read_arrays(path, ("packed", "shape", "labels", "class_names", "evaluation", "names"))
    packed, labels, classes = arrays["packed"], arrays["labels"], arrays["class_names"].astype(str)
    width = int(arrays["shape"].reshape(-1)[-1]) if arrays["shape"].dtype.kind in "iu" else 0
    if packed.ndim != 3 or packed.dtype != np.uint8 or packed.shape[2] != -(-width // 8) or classes.ndim != 1:
        raise ValueError(
            f"packed of {path} must be (N, H, ceil(W / 8)) uint8 for W = {width}, got {packed.shape} "
            f"{packed.dtype}; class_names must be a list, got {classes.shape}"
        )
    count = len(packed)
    for name, kinds in (("labels", "iu"), ("evaluation", "b"), ("names", "U")):
        if arrays[name].shape != (count,) or arrays[name].dtype.kind not in kinds:
            raise ValueError(
                f"{name} of {path} must have shape ({count},), got {arrays[name].shape} {arrays[name].dtype}"
            )
    if count and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(f"labels of {path} must be in 0..{len(classes) - 1}, up to {labels.max()} there")
    evaluation, names = arrays["evaluation"], arrays["names"]
    return LabeledImages(
        name="omniglot",
        images=PackedDrawings(packed, width),
        labels=labels.astype(np.int64),
        classes=tuple(classes.tolist()),
        train=np.flatnonzero(~evaluation),
        test=np.flatnonzero(evaluation),
        names=tuple(f"{classes[c]}/{name}" for c, name in zip(labels, names, strict=True)),
    )


def load_figures(root: Path, by: Literal["athletes", "sports"]) -> LabeledImages:
    """Drawn figures of `make_figures` by athletes or sports; the first half of them is learned from."""
    tree = load_tree(root)
    sports = by == "sports"
    labels = np.asarray(tree.frame_categories if sports else tree.sources, np.int64)
    classes = tree.categories if sports else tree.source_names
    learned = labels < (len(classes) + 1) // 2
    return LabeledImages(
        name=Path(root).resolve().name,
        images=OlympicFrames(tree),
        labels=labels,
        classes=tuple(classes),
        train=np.flatnonzero(learned),
        test=np.flatnonzero(~learned),
        names=tree.frame_names,
    )
