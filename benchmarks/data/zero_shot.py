"""Data of retrieval.py: images of classes, half of which are learned from without their labels.

CUB-200-2011    images.txt, image_class_labels.txt, images/<class>/<file>
Cars-196        cars_annos.mat with car_ims/; or devkit/ (cars_train_annos.mat and the other half,
                cars_test_annos_withlabels.mat) with cars_train/ and cars_test/
Stanford Online Products (SOP)      Ebay_train.txt and Ebay_test.txt, with the images they name
Omniglot        omniglot.npz: packed drawings, labels, class_names, evaluation
a folder        see `labelled_images.load_folder`
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.data import Dataset

from benchmarks.data.files import check_index, read_arrays, read_lines, read_matlab
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
    """Data of any kind, split by classes; of Omniglot `root` may be the file."""
    if kind == "folder":
        return load_folder(root, "classes", skip_unreadable)
    if kind == "omniglot":
        return load_omniglot(root)
    return {"cub": load_cub, "cars": load_cars, "sop": load_sop}[kind](root, skip_unreadable)


def load_cub(root: Path, skip_unreadable: bool = False) -> LabelledImages:
    """CUB-200-2011: classes 1 to 100 are learned from, 101 to 200 tested on."""
    root = Path(root)
    files = _pairs(root / "images.txt")
    classes = {n: _number(text) for n, text in _pairs(root / "image_class_labels.txt").items()}
    if -1 in classes.values():
        raise ValueError(f"image_class_labels.txt of {root} has a class that is no number: unpack it again")
    if files.keys() != classes.keys():
        raise ValueError(
            f"images.txt and image_class_labels.txt of {root} name other images: {len(files)} and "
            f"{len(classes)}; unpack it again"
        )
    paths = [root / "images" / files[number] for number in files]
    ids = np.array([classes[number] for number in files])
    titles = {c: files[number].partition("/")[0].partition(".")[2] for number, c in classes.items()}
    return _split("cub200", root, paths, ids, titles, _first_half(ids), skip_unreadable)


def load_cars(root: Path, skip_unreadable: bool = False) -> LabelledImages:
    """Cars-196, both of its own sets together: classes 1 to 98 are learned from, 99 to 196 tested on."""
    root = Path(root)
    devkit = root / "devkit" if (root / "devkit").is_dir() else root
    if (root / "cars_annos.mat").is_file():
        content = read_matlab(root / "cars_annos.mat", squeeze_me=True)
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
            found, of_part = _cars(read_matlab(table, squeeze_me=True), root / f"cars_{part}", "fname", table)
            places, ids = [*places, *found], np.concatenate([ids, of_part])
        meta = devkit / "cars_meta.mat"
        titles = _titles(read_matlab(meta, squeeze_me=True)) if meta.is_file() else {}
    return _split("cars196", root, places, ids, titles, _first_half(ids), skip_unreadable)


def load_sop(root: Path, skip_unreadable: bool = False) -> LabelledImages:
    """Stanford Online Products, with the split of its two tables."""
    root = Path(root)
    paths: list[Path] = []
    ids: list[int] = []
    learned: list[bool] = []
    for part in ("train", "test"):
        table = root / f"Ebay_{part}.txt"
        rows = [line.split() for line in read_lines(table) if line.strip()]
        if not rows or rows[0] != ["image_id", "class_id", "super_class_id", "path"]:
            raise ValueError(f"{table} must begin with: image_id class_id super_class_id path")
        for number, row in enumerate(rows[1:], 2):
            if len(row) != 4 or _number(row[1]) < 0:
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
        rows = self.packed[check_index(index, len(self), "drawings")]
        ink = np.unpackbits(rows, axis=1)[:, : self.width]
        return Image.fromarray((255 * (1 - ink)).astype(np.uint8)).convert("RGB")

    @property
    def data_id(self) -> str:
        """A digest that changes with the drawings."""
        return str(digest(self.packed, self.width))


def load_omniglot(root: Path) -> LabelledImages:
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
    return LabelledImages(
        name="omniglot",
        images=PackedDrawings(packed, width),
        labels=labels.astype(np.int64),
        classes=tuple(classes.tolist()),
        train=np.flatnonzero(~evaluation),
        test=np.flatnonzero(evaluation),
        names=tuple(f"{classes[c]}/{name}" for c, name in zip(labels, names, strict=True)),
    )


def load_figures(root: Path, by: Literal["athletes", "sports"]) -> LabelledImages:
    """Drawn figures of `make_figures` by athletes or sports; the first half of them is learned from."""
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
    missing = [] if skip_unreadable else [path for path in paths if not os.path.isfile(path)]
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
        return Path(os.path.relpath(path, root)).as_posix()

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


def _number(text: str) -> int:
    """A number from 0 that int64 holds; -1 for anything else."""
    return int(text) if text.isdecimal() and len(text) < 19 else -1


def _pairs(table: Path) -> dict[int, str]:
    """The lines "number text" of a table."""
    pairs: dict[int, str] = {}
    for line, text in enumerate(read_lines(table), 1):
        row = text.split()
        if len(row) != 2 or _number(row[0]) < 0:
            raise ValueError(f"line {line} of {table} must be a number and an entry, got {row}")
        pairs[int(row[0])] = row[1]
    return pairs


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
    try:
        ids = np.array([int(c) for c in rows["class"]], np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the classes of {table} must be numbers ({error}): download it again") from error
    return [folder / str(name) for name in rows[column]], ids


def _titles(content: Mapping[str, Any]) -> dict[int, str]:
    return {number: str(name) for number, name in enumerate(np.atleast_1d(content.get("class_names", [])), 1)}
