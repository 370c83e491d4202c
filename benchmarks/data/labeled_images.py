"""Images with classes, and the reader of folders of them."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.data.files import left_out
from benchmarks.data.images import ImageFiles
from pml_posets.data.cache import digest
from pml_posets.data.datasets import image_files

Split = Literal["images", "classes"]
MISSING = "image missing or damaged"  # a reason to leave images out


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """Images, each of one class, split into those to learn from and those to test on.

    Args:
        name: of the data, for results.
        images: PIL images, with a `data_id`.
        labels: (N,) int64 from 0, index of the class name.
        classes: names.
        train, test: dataset indices, int64.
        names: N names of the images, the same wherever they lie; empty: their numbers tell them apart.
        excluded: reason to the names of what was left out.
    """

    name: str
    images: Any
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    names: tuple[str, ...] = ()
    excluded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.images),):
            raise ValueError(f"{self.name} has {len(self.images)} images, labels of {self.labels.shape}")
        if self.names and len(self.names) != len(self.images):
            raise ValueError(f"{self.name} has {len(self.images)} images, but {len(self.names)} names")
        for part in ("train", "test"):
            if not len(getattr(self, part)):
                raise ValueError(f"there are no images to {part} on in {self.name}")

    def __len__(self) -> int:
        return len(self.images)

    def summary(self) -> str:
        """What there is and what was left out, a line each."""
        lines = [
            f"{self.name}: {len(self)} images of {len(self.classes)} classes, {len(self.train)} to learn "
            f"from, {len(self.test)} to test on"
        ]
        return "\n".join([*lines, *left_out(self.excluded)])

    def settings(self) -> dict[str, Any]:
        """What identifies these data, for results."""
        return {
            "data": self.name,
            "image_names": str(digest(list(self.names), self.labels, self.train, self.test)[:16]),
            "num_train": len(self.train),
            "num_test": len(self.test),
            "left_out": {reason: len(names) for reason, names in self.excluded.items()},
        }


def numbered(names: Sequence[str]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """The number of each sample's class, and the classes in order: 2 comes before 10."""
    numeric = all(name.isdecimal() for name in names)
    classes = sorted(set(names), key=lambda name: (int(name) if numeric else 0, name))
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[name] for name in names], np.int64), tuple(classes)


def check_known(
    labels: npt.NDArray[np.int64], learned: npt.NDArray[np.bool_], classes: Sequence[str], root: Path
) -> None:
    """ValueError if a class is tested that nothing to learn from (`learned`, (N,) bool) has."""
    unknown = np.setdiff1d(labels[~learned], labels[learned])
    if unknown.size and learned.any():
        raise ValueError(f"nothing to learn from in {root} is of the class {classes[unknown[0]]}")


def load_folder(root: Path, split: Split, skip_unreadable: bool = False) -> LabeledImages:
    """A folder of images with classes.

    Its classes are its subfolders; or `labels.csv` has the columns file and class, the files being under the
    folder or under its images/. Where there are train/ and test/, each with the classes, they are the split.

    Args:
        root: the folder.
        split: where it has none of its own. "images": every other image of each class, in order of their
            names, is to be learned from, the rest to be tested on; a class of a single image is not tested,
            and named. "classes": the first half of the classes (in order) is learned from, the second half
            tested on.
        skip_unreadable: decode every image now, and leave out those that cannot be.
    """
    root = Path(root)
    if not root.is_dir():
        raise NotADirectoryError(
            f"{root} is no folder: give a folder of images with a subfolder for each class"
        )
    halves = None
    if (root / "labels.csv").is_file():
        paths, names = _listed(root)
    elif (root / "train").is_dir() and (root / "test").is_dir():
        found = [_by_folder(root / part) for part in ("train", "test")]
        paths, names = ([*found[0][i], *found[1][i]] for i in (0, 1))
        halves = np.arange(len(paths)) < len(found[0][0])
    else:
        paths, names = _by_folder(root)
    images, kept, excluded = readable(paths, root, skip_unreadable)
    labels, classes = numbered([name for name, keep in zip(names, kept, strict=True) if keep])
    if len(classes) < 2:
        raise ValueError(f"{root} has the class {', '.join(classes)} alone: at least two are needed")
    if halves is not None:
        learned = halves[kept]
    elif split == "classes":
        learned = labels < (len(classes) + 1) // 2
    else:
        learned = _every_other(labels)
        single = np.flatnonzero(np.bincount(labels) == 1)
        if single.size:
            excluded["class of a single image, not tested"] = tuple(classes[c] for c in single)
    if split == "images":
        check_known(labels, learned, classes, root)
    return LabeledImages(
        name=root.resolve().name,
        images=images,
        labels=labels,
        classes=classes,
        train=np.flatnonzero(learned),
        test=np.flatnonzero(~learned),
        names=tuple(within(root, path) for path in images.paths),
        excluded=excluded,
    )


def readable(
    paths: Sequence[Path], root: Path, skip_unreadable: bool
) -> tuple[ImageFiles, npt.NDArray[np.bool_], dict[str, tuple[str, ...]]]:
    """The images of files, (N,) bool which files are among them, and the names of those that are left out."""
    images = ImageFiles(paths, skip_unreadable=skip_unreadable)
    gone = {path for path, _ in images.unreadable}
    kept = np.array([path not in gone for path in paths])
    return images, kept, {MISSING: tuple(within(root, path) for path in sorted(gone))} if gone else {}


def _listed(root: Path) -> tuple[list[Path], list[str]]:
    """Files and classes of labels.csv."""
    table = root / "labels.csv"
    paths: dict[Path, str] = {}
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"file", "class"} <= set(reader.fieldnames or ()):
                raise ValueError(f"{table} must have the columns file and class, got {reader.fieldnames}")
            for row in reader:
                line = f"line {reader.line_num} of {table}"
                if not row["file"] or not row["class"]:
                    raise ValueError(f"{line} names no {'class' if row['file'] else 'file'}")
                options = [folder / row["file"] for folder in (root, root / "images")]
                path = next((path for path in options if os.path.isfile(path)), None)
                if path is None:
                    raise FileNotFoundError(
                        f"{line} names {row['file'][:200]}, which is neither in {root} nor in images/"
                    )
                if path in paths:
                    raise ValueError(f"{table} names {within(root, path)} more than once")
                paths[path] = row["class"]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table} is damaged or no table ({error}): write it as UTF-8 text") from error
    return list(paths), list(paths.values())


def _by_folder(root: Path) -> tuple[list[Path], list[str]]:
    """Images of the subfolders, which are the classes."""
    paths = [path for path in image_files(root) if path.parent != root]
    if not paths:
        raise ValueError(f"{root} has no subfolders of images, one for each class, and no labels.csv")
    return paths, [path.relative_to(root).parts[0] for path in paths]


def within(root: Path, path: Path) -> str:
    """The name of a file: its path from the root."""
    return Path(os.path.relpath(path, root)).as_posix()


def _every_other(labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """True for the first, third, ... sample of each class."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[::2]] = True
    return chosen
