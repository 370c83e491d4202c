"""Data of retrieval.py: images of classes, half of which are learned from without their labels.

CUB-200-2011    images.txt, image_class_labels.txt, images/<class>/<file>
Cars-196        cars_annos.mat with car_ims/; or devkit/ (cars_train_annos.mat and the other half,
                cars_test_annos_withlabels.mat) with cars_train/ and cars_test/
Stanford Online Products (SOP)      Ebay_train.txt and Ebay_test.txt, with the images they name
Omniglot        omniglot.npz: packed drawings, labels, class_names, evaluation
a folder        see `labelled_images.load_folder`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.data import Dataset

from benchmarks.data.labelled_images import ImageFiles, LabelledImages, load_folder
from benchmarks.data.olympic import OlympicFrames, load_tree
from pml_posets.data.cache import digest

Kind = Literal["cub", "cars", "sop", "omniglot", "folder"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NAMES = {"cub": "cub200", "cars": "cars196", "sop": "sop", "omniglot": "omniglot"}


def kind_of(root: Path) -> Kind:
    """What a folder holds, by its files."""
    marks: dict[Kind, tuple[str, ...]] = {
        "cub": ("image_class_labels.txt",),
        "cars": ("cars_annos.mat", "devkit/cars_train_annos.mat", "cars_train_annos.mat"),
        "sop": ("Ebay_train.txt",),
        "omniglot": ("omniglot.npz",),
    }
    for kind, files in marks.items():
        if any((root / name).is_file() for name in files):
            return kind
    return "omniglot" if root.suffix == ".npz" else "folder"


def load(kind: Kind, root: Path, skip_unreadable: bool = False) -> LabelledImages:
    """Data of any kind, split by classes.

    Args:
        kind: which.
        root: the folder; of Omniglot also the file.
        skip_unreadable: decode every file now, and leave out those that cannot be.

    Raises:
        OSError, ValueError: for data that are missing, damaged or of another layout.
    """
    if kind == "folder":
        return load_folder(root, "classes", skip_unreadable)
    if kind == "omniglot":
        return load_omniglot(root)
    return {"cub": load_cub, "cars": load_cars, "sop": load_sop}[kind](root, skip_unreadable)


def load_cub(root: Path, skip_unreadable: bool = False) -> LabelledImages:
    """CUB-200-2011: classes 1 to 100 are learned from, 101 to 200 tested on.

    Raises:
        FileNotFoundError, ValueError: if a table or an image is missing, or a table is damaged.
    """
    root = Path(root)
    files = _pairs(root / "images.txt")
    classes = {number: int(text) for number, text in _pairs(root / "image_class_labels.txt").items()}
    if files.keys() != classes.keys():
        raise ValueError(
            f"images.txt and image_class_labels.txt of {root} name other images: {len(files)} and "
            f"{len(classes)}; unpack it anew"
        )
    paths = [root / "images" / files[number] for number in files]
    ids = np.array([classes[number] for number in files])
    titles = {c: files[number].partition("/")[0].partition(".")[2] for number, c in classes.items()}
    return _split("cub200", root, paths, ids, titles, _first_half(ids), skip_unreadable)


def load_cars(root: Path, skip_unreadable: bool = False) -> LabelledImages:
    """Cars-196, both of its own sets together: classes 1 to 98 are learned from, 99 to 196 tested on.

    Raises:
        FileNotFoundError, ValueError: if a file is missing or damaged.
    """
    root = Path(root)
    devkit = root / "devkit" if (root / "devkit").is_dir() else root
    if (root / "cars_annos.mat").is_file():
        content = _mat(root / "cars_annos.mat")
        places, ids = _cars(content, root, "relative_im_path", root / "cars_annos.mat")
        titles = _titles(content)
    else:
        places, ids = [], np.zeros(0, np.int64)
        for part, file in (("train", "cars_train_annos"), ("test", "cars_test_annos_withlabels")):
            table = next((p for p in (devkit / f"{file}.mat", root / f"{file}.mat") if p.is_file()), None)
            if table is None:
                raise FileNotFoundError(
                    f"there is neither {root}/cars_annos.mat nor {file}.mat in {devkit}: give the folder of "
                    "Cars-196 with its annotation, or its images in a folder a class (--dataset folder)"
                )
            found, of_part = _cars(_mat(table), root / f"cars_{part}", "fname", table)
            places, ids = [*places, *found], np.concatenate([ids, of_part])
        meta = devkit / "cars_meta.mat"
        titles = _titles(_mat(meta)) if meta.is_file() else {}
    return _split("cars196", root, places, ids, titles, _first_half(ids), skip_unreadable)


def load_sop(root: Path, skip_unreadable: bool = False) -> LabelledImages:
    """Stanford Online Products, with the split of its two tables.

    Raises:
        FileNotFoundError, ValueError: if a table or an image is missing, or a table is damaged.
    """
    root = Path(root)
    paths: list[Path] = []
    ids: list[int] = []
    learned: list[bool] = []
    for part in ("train", "test"):
        table = root / f"Ebay_{part}.txt"
        rows = _lines(table)
        if not rows or rows[0] != ["image_id", "class_id", "super_class_id", "path"]:
            raise ValueError(f"{table} must begin with: image_id class_id super_class_id path")
        for number, row in enumerate(rows[1:], 2):
            if len(row) != 4 or not row[1].isdecimal():
                raise ValueError(f"line {number} of {table} must be four entries, a number second, got {row}")
            paths.append(root / row[3])
            ids.append(int(row[1]))
            learned.append(part == "train")
    return _split("sop", root, paths, np.array(ids), {}, np.array(learned), skip_unreadable)


class PackedDrawings(Dataset[Any]):
    """Drawings of packed bits: item i is an RGB PIL image, black ink on white.

    Args:
        packed: (N, H, ceil(W / 8)) uint8, `np.packbits` of the rows, ink = 1.
        width: W.
    """

    def __init__(self, packed: npt.NDArray[np.uint8], width: int) -> None:
        self.packed, self.width = packed, width

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> Image.Image:
        if not 0 <= index < len(self):
            raise IndexError(f"drawings are 0 to {len(self) - 1}, asked for {index}")
        ink = np.unpackbits(self.packed[index], axis=1)[:, : self.width]
        return Image.fromarray((255 * (1 - ink)).astype(np.uint8)).convert("RGB")

    @property
    def data_id(self) -> str:
        """A digest that changes with the drawings."""
        return str(digest(self.packed, self.width))


def load_omniglot(root: Path) -> LabelledImages:
    """Omniglot: characters of the background alphabets are learned from, of the evaluation ones tested on.

    Args:
        root: omniglot.npz, or its folder. The classes are its characters, "<alphabet>/<character>".

    Raises:
        FileNotFoundError, ValueError: if it is missing, damaged, or lacks an array.
    """
    path = Path(root) / "omniglot.npz" if Path(root).is_dir() else Path(root)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: give the folder of omniglot.npz")
    needed = ("packed", "shape", "labels", "class_names", "evaluation", "names")
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
    except Exception as error:  # numpy and zipfile raise anything on damage
        raise ValueError(f"{path} is damaged or no .npz file ({error}): copy it anew") from error
    if missing := [name for name in needed if name not in found]:
        raise ValueError(f"{path} lacks {', '.join(missing)}, it has {', '.join(found) or 'nothing'}")
    count, labels, evaluation = len(found["packed"]), found["labels"], found["evaluation"].astype(bool)
    classes = [str(name) for name in found["class_names"]]
    for name in ("labels", "evaluation", "names"):
        if found[name].shape != (count,):
            raise ValueError(f"{name} of {path} must have shape ({count},), got {found[name].shape}")
    if count and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(f"labels of {path} must be in 0..{len(classes) - 1}, up to {labels.max()} there")
    return LabelledImages(
        name="omniglot",
        images=PackedDrawings(found["packed"], int(found["shape"][-1])),
        labels=labels.astype(np.int64),
        classes=tuple(classes),
        train=np.flatnonzero(~evaluation),
        test=np.flatnonzero(evaluation),
        names=tuple(f"{classes[c]}/{name}" for c, name in zip(labels, found["names"], strict=True)),
    )


def load_figures(root: Path, by: Literal["athletes", "sports"]) -> LabelledImages:
    """Drawn figures; the classes are athletes, or sports. The first half of them is learned from.

    Args:
        root: a tree that `figures.make_figures` made.
        by: what the classes are.
    """
    tree = load_tree(root)
    sports = by == "sports"
    labels = np.asarray(tree.frame_categories if sports else tree.sources, np.int64)
    classes = tree.categories if sports else tree.source_names
    learned = labels < (len(classes) + 1) // 2
    sequences = (tree.sequence_names[number] for number in tree.sequences)
    return LabelledImages(
        name=Path(root).resolve().name,
        images=OlympicFrames(tree),
        labels=labels,
        classes=tuple(classes),
        train=np.flatnonzero(learned),
        test=np.flatnonzero(~learned),
        names=tuple(f"{where}/{Path(name).name}" for where, name in zip(sequences, tree.names, strict=True)),
    )


def _split(
    name: str,
    root: Path,
    paths: Sequence[Path],
    ids: npt.NDArray[np.int64],
    titles: Mapping[int, str],
    learned: npt.NDArray[np.bool_],
    skip_unreadable: bool,
) -> LabelledImages:
    """Images of listed files; classes in order of their ids."""
    missing = [] if skip_unreadable else [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} images of {name} are missing, the first is {missing[0]}: unpack "
            "them there, or leave them out by --skip-unreadable"
        )
    images = ImageFiles(paths, skip_unreadable=skip_unreadable)
    gone = {path for path, _ in images.unreadable}
    kept = np.array([path not in gone for path in paths], bool)
    found, labels = np.unique(ids[kept], return_inverse=True)

    def within(path: Path) -> str:
        return path.relative_to(root).as_posix()

    return LabelledImages(
        name=name,
        images=images,
        labels=labels.astype(np.int64),
        classes=tuple(titles.get(int(c), str(c)) for c in found),
        train=np.flatnonzero(learned[kept]),
        test=np.flatnonzero(~learned[kept]),
        names=tuple(map(within, images.paths)),
        excluded={"image missing or damaged": tuple(map(within, sorted(gone)))} if gone else {},
    )


def _first_half(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """True for the first half of the classes."""
    found, places = np.unique(ids, return_inverse=True)
    return np.asarray(places < (len(found) + 1) // 2)


def _lines(table: Path) -> list[list[str]]:
    if not table.is_file():
        raise FileNotFoundError(f"there is no {table}: give the unpacked folder of the data, as published")
    return [line.split() for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]


def _pairs(table: Path) -> dict[int, str]:
    """The lines "number text" of a table."""
    rows = _lines(table)
    for line, row in enumerate(rows, 1):
        if len(row) != 2 or not row[0].isdecimal():
            raise ValueError(f"line {line} of {table} must be a number and an entry, got {row}")
    return {int(number): text for number, text in rows}


def _mat(path: Path) -> Mapping[str, Any]:
    from scipy.io import loadmat

    try:
        return loadmat(path, squeeze_me=True)
    except Exception as error:  # scipy raises anything on damage
        raise ValueError(f"{path} is damaged or no MATLAB file ({error}): download it anew") from error


def _cars(
    content: Mapping[str, Any], folder: Path, column: str, table: Path
) -> tuple[list[Path], npt.NDArray[np.int64]]:
    """Files and class numbers of one annotation of Cars-196."""
    rows = np.atleast_1d(content.get("annotations", np.zeros(0)))
    columns = rows.dtype.names or ()
    if not {column, "class"} <= set(columns):
        raise ValueError(
            f"annotations of {table} must have the columns {column} and class, got {', '.join(columns)}: "
            "the test half needs cars_test_annos_withlabels.mat"
        )
    return [folder / str(name) for name in rows[column]], np.array([int(c) for c in rows["class"]], np.int64)


def _titles(content: Mapping[str, Any]) -> dict[int, str]:
    return {number: str(name) for number, name in enumerate(np.atleast_1d(content.get("class_names", [])), 1)}
