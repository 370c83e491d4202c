"""Images with classes: PASCAL VOC's object boxes, and folders of images."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from pml_posets.cache import digest
from pml_posets.datasets import ImageList, image_files

Split = Literal["images", "classes"]


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images, each of one class, split into those to learn from and those to test on.

    Args:
        name: of the data, for results.
        images: PIL images, with a `data_id`.
        labels: (N,) int64 from 0, index of the class name.
        classes: names.
        train, test: dataset indices, int64.
        excluded: reason to the names of what was left out.

    Raises:
        ValueError: for labels that do not match, or an empty side of the split.
    """

    name: str
    images: Any
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    excluded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.images),):
            raise ValueError(f"{self.name} has {len(self.images)} images, labels of {self.labels.shape}")
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
        for reason, names in self.excluded.items():
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            lines.append(f"  left out, {reason}: {len(names)} ({shown})")
        return "\n".join(lines)

    def settings(self) -> dict[str, Any]:
        """What tells these data from others, for results."""
        return {
            "data": self.name,
            "data_id": str(digest(self.images.data_id, self.labels, self.train, self.test)[:16]),
            "num_train": len(self.train),
            "num_test": len(self.test),
            "left_out": {reason: len(names) for reason, names in self.excluded.items()},
        }


class Chosen(Dataset[Any]):
    """Some of a set of images.

    Args:
        images: with a `data_id`.
        indices: which.
    """

    def __init__(self, images: Any, indices: npt.NDArray[np.int64]) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.images[int(self.indices[index])]

    @property
    def data_id(self) -> str:
        """A digest that changes with the images or the choice."""
        return str(digest(self.images.data_id, np.asarray(self.indices)))


class BoxCrops(Dataset[Any]):
    """Objects cut from images when they are read, in the proportions of their boxes.

    Args:
        paths: N image files.
        boxes: (N, 4) int left, top, right, bottom in pixels; right and bottom are not in the box.
    """

    def __init__(self, paths: Sequence[Path], boxes: npt.NDArray[np.int64]) -> None:
        self._files = ImageList(paths)
        self.paths, self.boxes = self._files.paths, boxes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self._files[index].crop(tuple(int(side) for side in self.boxes[index]))

    @property
    def data_id(self) -> str:
        """A digest that changes with the files or the boxes."""
        return str(digest(files_id(self.paths), self.boxes))


class ImageFiles(ImageList):
    """Whole images."""

    @property
    def data_id(self) -> str:
        """A digest that changes with the files."""
        return files_id(self.paths)


def files_id(paths: Sequence[Path]) -> str:
    """A digest that changes with the files: their names, sizes, times of change."""
    states = [path.stat() for path in dict.fromkeys(paths)]
    return str(digest([str(path) for path in paths], [[s.st_size, s.st_mtime_ns] for s in states]))


def load_folder(root: Path, split: Split, skip_unreadable: bool = False) -> LabelledImages:
    """A folder of images with classes.

    Its classes are its subfolders; or `labels.csv` has the columns file and class, the files being under the
    folder or under its images/. Where there are train/ and test/, each with the classes, they are the split.

    Args:
        root: the folder.
        split: where it has none of its own. "images": every other image of each class, in order of their
            names, is to be learned from, the rest to be tested on. "classes": the first half of the classes
            (in order) is learned from, the second half tested on.
        skip_unreadable: decode every image now, and leave out those that cannot be.

    Raises:
        NotADirectoryError, FileNotFoundError, ValueError: if it is none of these, a class has too few images
            or a line of labels.csv names no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise NotADirectoryError(
            f"{root} is no folder: give a folder of images with a subfolder for each class"
        )
    if (root / "labels.csv").is_file():
        paths, names = _listed(root)
        halves = None
    elif (root / "train").is_dir() and (root / "test").is_dir():
        found = [_by_folder(root / part) for part in ("train", "test")]
        paths, names = ([*found[0][i], *found[1][i]] for i in (0, 1))
        halves = np.arange(len(paths)) < len(found[0][0])
    else:
        paths, names = _by_folder(root)
        halves = None
    images = ImageFiles(paths, skip_unreadable=skip_unreadable)
    unreadable = {path for path, _ in images.unreadable}
    kept = np.array([path not in unreadable for path in paths])
    names = [name for name, keep in zip(names, kept, strict=True) if keep]
    classes, labels = np.unique(names, return_inverse=True)
    if all(name.isdigit() for name in names):  # 2 comes before 10
        numbers = sorted(set(names), key=int)
        labels = np.array([numbers.index(name) for name in classes])[labels]
        classes = np.array(numbers)
    if len(classes) < 2:
        raise ValueError(f"{root} has the class {', '.join(classes)} alone: at least two are needed")
    if split == "classes":
        learned = labels < (len(classes) + 1) // 2
    else:
        learned = _every_other(labels) if halves is None else halves[kept]
    return LabelledImages(
        name=root.resolve().name,
        images=images,
        labels=labels.astype(np.int64),
        classes=tuple(classes.tolist()),
        train=np.flatnonzero(learned),
        test=np.flatnonzero(~learned),
        excluded={"unreadable": tuple(path.name for path in sorted(unreadable))} if unreadable else {},
    )


def load_voc(root: Path, year: str, train: str, test: str, download: bool = False) -> LabelledImages:
    """Object boxes of PASCAL VOC, read by torchvision's dataset; objects marked difficult are left out.

    Args:
        root: folder that holds VOCdevkit/.
        year: "2007".
        train, test: image sets.
        download: fetch it first.

    Raises:
        RuntimeError: by torchvision, if it is not there and not to be downloaded.
        ValueError: for an annotation that is damaged, or a class that only the test objects have.
    """
    paths: list[Path] = []
    boxes: list[list[int]] = []
    names: list[str] = []
    halves: list[bool] = []
    excluded: dict[str, tuple[str, ...]] = {}
    for part in (train, test):
        found = _voc(root, year, part, download)
        for path, note in zip(found.images, found.annotations, strict=True):
            for number, (name, box, difficult) in enumerate(_objects(Path(note)), 1):
                empty = box[0] >= box[2] or box[1] >= box[3]
                if difficult or empty:
                    reason = "difficult" if difficult else "empty box"
                    excluded[reason] = (*excluded.get(reason, ()), f"{Path(note).stem} object {number}")
                    continue
                paths.append(Path(path))
                boxes.append(box)
                names.append(name)
                halves.append(part == train)
    classes, labels = np.unique(names, return_inverse=True)
    learned = np.array(halves, bool)
    unknown = np.setdiff1d(labels[~learned], labels[learned])
    if unknown.size:
        raise ValueError(f"no object to learn from in {root} is of the class {classes[unknown[0]]}")
    return LabelledImages(
        name=f"voc{year}",
        images=BoxCrops(paths, np.array(boxes, np.int64).reshape(-1, 4)),
        labels=labels.astype(np.int64),
        classes=tuple(classes.tolist()),
        train=np.flatnonzero(learned),
        test=np.flatnonzero(~learned),
        excluded=excluded,
    )


def _voc(root: Path, year: str, part: str, download: bool) -> Any:
    from torchvision.datasets import VOCDetection

    try:
        return VOCDetection(str(root), year=year, image_set=part, download=download)
    except (RuntimeError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"PASCAL VOC {year} {part} is not in {root} ({error}): unpack it so that "
            f"{root}/VOCdevkit/VOC{year} is there, or give --download"
        ) from error


def _objects(note: Path) -> list[tuple[str, list[int], bool]]:
    """Class, box (left, top, right, bottom; the last two not in it) and difficulty of each object."""
    try:
        found = []
        for one in ElementTree.parse(note).getroot().iter("object"):
            left, top, right, bottom = (
                round(float(one.findtext(f"bndbox/{side}", ""))) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            name, difficult = one.findtext("name", ""), one.findtext("difficult", "0").strip() == "1"
            if not name:
                raise ValueError("an object has no name")
            found.append((name, [left - 1, top - 1, right, bottom], difficult))
        return found
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"the annotation {note} is damaged ({error}): unpack it anew") from error


def _listed(root: Path) -> tuple[list[Path], list[str]]:
    """Files and classes of labels.csv."""
    table = root / "labels.csv"
    with open(table, newline="") as file:
        reader = csv.DictReader(file)
        if not {"file", "class"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{table} must have the columns file and class, got {reader.fieldnames}")
        rows = list(reader)
    folder = root / "images" if (root / "images").is_dir() else root
    paths = [folder / row["file"] for row in rows]
    for line, path in enumerate(paths, 2):
        if not path.is_file():
            raise FileNotFoundError(f"line {line} of {table} names {path}, which is not there")
    return paths, [row["class"] for row in rows]


def _by_folder(root: Path) -> tuple[list[Path], list[str]]:
    """Images of the subfolders, which are the classes."""
    paths = [path for path in image_files(root) if path.parent != root]
    if not paths:
        raise ValueError(f"{root} has no subfolders of images, one for each class, and no labels.csv")
    return paths, [path.relative_to(root).parts[0] for path in paths]


def _every_other(labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """True for the first, third, ... sample of each class."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[::2]] = True
    return chosen
