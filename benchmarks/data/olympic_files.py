"""Readers of the annotation files of an Olympic Sports tree: frame lists, label files, boxes, joints.

Each reader returns what it could read and notes what is wrong in `Problems`: one message then names it all.
Nothing is read that is larger than the file's size or the number of frames allows.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.data.files import most_bytes, read_arrays, read_lines
from benchmarks.measures.anchors import RetrievalLabels

LIST_FOLDERS = ("image_pathes", "image_paths", "imagePathes", "imagePaths")
LABEL_FOLDER = "labels_hdf5"
BOX_ARCHIVES = ("bboxes.tar.gz", "bboxes.tgz", "bboxes.tar")
_LABEL_KEYS = ("anchors", "pos_ids", "neg_ids", "pos_flipvals", "neg_flipvals")
_NAMED = 5  # files in a message
_DIGITS = 15  # of a frame's number: a float64 holds it exactly
_LINE = 200  # bytes of a line of a box file, at most
_LONGEST_SIDE = 9_000  # of a box, px: Pillow takes larger images for decompression bombs


class TreeError(ValueError):
    """A data tree that is incomplete or damaged; the message lists everything that is wrong with it."""


@dataclass
class Problems:
    """What is wrong with a tree: sentences, each with the names of the files it holds of."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, sentence: str, *names: str) -> None:
        """Note that `sentence` holds of `names` (or of the tree itself, without names)."""
        self.found.setdefault(sentence, []).extend(names)

    def raise_if_any(self, root: Path) -> None:
        """One `TreeError` with every sentence, how many things it holds of, and the first few of them."""
        if not self.found:
            return
        lines = []
        for sentence, names in self.found.items():
            more = f", ... ({len(names)} in all)" if len(names) > _NAMED else ""
            lines.append(f"- {sentence}" + (f": {', '.join(names[:_NAMED])}{more}" if names else ""))
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise TreeError(f"{root} cannot be used as an Olympic Sports tree, {count}:\n" + "\n".join(lines))


@dataclass(frozen=True)
class FrameList:
    """The frames of one category in the order of its list: the id of a frame is its position here."""

    names: tuple[str, ...]
    sequences: tuple[str, ...]
    numbers: npt.NDArray[np.int64]


def find_categories(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Category to frame list, and category to label file, both by sorted category."""
    lists: dict[str, Path] = {}
    for folder in LIST_FOLDERS:
        for path in sorted((root / folder).glob("imagePaths_*.txt")):
            lists.setdefault(path.stem.removeprefix("imagePaths_"), path)
    labels: dict[str, Path] = {}
    for pattern in ("labels_*.hdf5", "labels_*.h5"):
        for path in sorted((root / LABEL_FOLDER).glob(pattern)):
            labels.setdefault(path.stem.removeprefix("labels_"), path)
    return dict(sorted(lists.items())), dict(sorted(labels.items()))


def read_frame_list(path: Path, problems: Problems) -> FrameList:
    """The lines `./<sequence>/<frame>.png` of a category."""
    try:
        lines = read_lines(path)
    except (OSError, ValueError) as error:
        problems.add("frame lists that cannot be read", f"{path.name} ({error})")
        return FrameList((), (), np.zeros(0, dtype=np.int64))
    names, sequences, numbers, wrong = [], [], [], []
    for i, line in enumerate(lines):
        match = re.fullmatch(r"(?:\./)?([^/]+)/([^/]*?(\d+)\.\w+)", line.strip())
        if match is None or len(match[3].lstrip("0")) > _DIGITS:
            wrong.append(f"{path.name} line {i + 1} ({line.strip()[:40]!r})")
            continue
        names.append(f"{match[1]}/{match[2]}")
        sequences.append(match[1])
        numbers.append(int(match[3][-_DIGITS:]))
    if wrong:
        problems.add(
            "lines of frame lists are not of the form ./<sequence>/<name with number>.<suffix>", *wrong
        )
    elif not names:
        problems.add("frame lists without a frame", path.name)
    return FrameList(tuple(names), tuple(sequences), np.array(numbers, dtype=np.int64))


def read_labels(path: Path, num_frames: int, problems: Problems) -> RetrievalLabels | None:
    """The anchors of a category; None, and a problem noted, where the file is damaged or does not fit."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            wrong = [key for key in _LABEL_KEYS if not isinstance(file.get(key), h5py.Dataset)]
            if wrong:
                names = ", ".join(f"{key} is a group" if key in file else f"no {key}" for key in wrong)
                problems.add("label files without all their data sets", f"{path.name} ({names})")
                return None
            anchors, *rows = (_entries(file[key], most_bytes(path)) for key in _LABEL_KEYS)
    except Exception as error:  # h5py raises anything on damage
        problems.add("label files that cannot be read (cut off or half written?)", f"{path.name} ({error})")
        return None
    try:
        labels = RetrievalLabels(anchors, *rows)
    except (TypeError, ValueError) as error:
        problems.add("label files whose content does not fit together", f"{path.name} ({error})")
        return None
    if len(labels) == 0:
        problems.add("label files without an anchor", path.name)
        return None
    if labels.max_id >= num_frames:
        ids = np.unique(np.concatenate([labels.anchors, *labels.pos_ids, *labels.neg_ids]))
        problems.add(
            "label files with ids beyond the category's frame list",
            f"{path.name} ({int((ids >= num_frames).sum())} ids of {num_frames} or more, up to {ids[-1]})",
        )
        return None
    return labels


def _entries(data: Any, most: int) -> Any:
    """What an HDF5 data set holds, unless it claims more than `most` bytes."""
    import h5py

    claimed = max(data.nbytes, math.prod(data.chunks or ()) * data.dtype.itemsize)
    if claimed > most:
        raise ValueError(f"{data.name} claims {claimed} bytes, more than the file can hold")
    if h5py.check_vlen_dtype(data.dtype) is None or data.ndim != 1:
        return data[()]
    rows: list[Any] = []
    for start in range(0, len(data), 64):  # lists may share what they refer to: the file's size is no bound
        rows.extend(data[start : start + 64])
        most -= sum(np.asarray(row).nbytes for row in rows[start:])
        if most < 0:
            raise ValueError(f"the lists of {data.name} are longer than the file can hold")
    return rows


def has_boxes(root: Path) -> bool:
    """Whether there is a folder or an archive of boxes."""
    return any((root / name).exists() for name in ("bboxes", *BOX_ARCHIVES))


def read_boxes(root: Path, lists: dict[str, FrameList], problems: Problems) -> npt.NDArray[np.int64]:
    """(N, 4) boxes xmin, ymin, xmax, ymax (1-based, inclusive pixels) of all frames, categories in order.

    Box files have lines `frame xmin ymin xmax ymax`; `frame` is the number in the frame's name plus 1.
    """
    rows_of: dict[str, tuple[FrameList, npt.NDArray[np.int64], int]] = {}
    start = 0
    for category, frames in lists.items():
        by_sequence: dict[str, list[int]] = {}
        for row, sequence in enumerate(frames.sequences):
            by_sequence.setdefault(sequence, []).append(row)
        for sequence, members in by_sequence.items():
            rows_of[f"{category}/{sequence}.bb"] = (frames, np.array(members), start)
        start += len(frames.names)
    table = np.zeros((start, 4), dtype=np.int64)
    texts = _box_texts(root, {name: len(rows) for name, (_, rows, _) in rows_of.items()}, problems)
    for name, (frames, rows, start) in rows_of.items():
        if name not in texts:
            problems.add("sequences without a box file", name)
        elif texts[name] is not None:
            boxes = _boxes_of(texts[name] or "", frames.numbers[rows] + 1, name, problems)
            if boxes is not None:
                table[start + rows] = boxes
    return table


def _boxes_of(
    text: str, numbers: npt.NDArray[np.int64], name: str, problems: Problems
) -> npt.NDArray[np.int64] | None:
    """(F, 4) boxes of the frames of these numbers; None, and a problem noted, where something is wrong."""
    try:
        rows = np.array([line.split() for line in text.splitlines() if line.strip()], dtype=np.float64)
    except ValueError:
        rows = np.zeros(0)
    if rows.ndim != 2 or rows.shape[1] != 5 or not np.isfinite(rows).all():
        problems.add("box files with lines that are not five numbers", name)
        return None
    if len(rows) != len(numbers):
        problems.add(
            "box files with another number of lines than their sequence has frames",
            f"{name} ({len(rows)} boxes, {len(numbers)} frames)",
        )
        return None
    by_number = {int(row[0]): row[1:] for row in rows}
    absent = [int(n) for n in numbers if int(n) not in by_number]
    if absent:
        problems.add(
            "box files that miss frames of their sequence (a box's number: the frame's plus 1)",
            f"{name} ({len(absent)} frames, the first is {absent[0]})",
        )
        return None
    boxes = np.array([by_number[int(n)] for n in numbers])
    sides = boxes[:, 2:] - boxes[:, :2]
    large = (np.abs(boxes) > 1e6).any(axis=1) | (sides >= _LONGEST_SIDE).any(axis=1)
    for sentence, wrong in (
        ("box files with boxes that end before they start", (sides < 0).any(axis=1)),
        ("box files with boxes beyond any frame", large),
    ):
        if wrong.any():
            problems.add(sentence, f"{name} (frame {numbers[wrong.argmax()]})")
    return None if large.any() else boxes.astype(np.int64)


def _box_texts(root: Path, num_frames: dict[str, int], problems: Problems) -> dict[str, str | None]:
    """Text of each box file that is there, by category/sequence.bb; None for those with a problem noted."""
    texts: dict[str, str | None] = {}

    def add(name: str, size: int, read: Any) -> None:
        texts[name] = None
        if size > _LINE * (num_frames[name] + 10):
            problems.add("box files that are too large for their sequences", f"{name} ({size} bytes)")
            return
        try:
            texts[name] = read().decode("utf-8", "replace")
        except OSError as error:
            problems.add("box files that cannot be read", f"{name} ({error.strerror})")

    folder = root / "bboxes"
    if folder.exists():
        if not folder.is_dir():
            problems.add("bboxes is no folder")
        for name in num_frames:
            if os.path.exists(folder / name):
                size = os.path.isfile(folder / name) and os.path.getsize(folder / name)
                add(name, size, (folder / name).read_bytes)
        return texts
    archive = next(root / name for name in BOX_ARCHIVES if (root / name).exists())
    try:
        with open(archive, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(archive) if packed else open(archive, "rb") as unpacked:
            bounded = _Bounded(unpacked, 2**22 + 10 * _LINE * sum(num_frames.values()))
            with tarfile.open(fileobj=bounded, mode="r|") as tar:  # type: ignore[call-overload]
                for member in tar:
                    name = "/".join(member.name.split("/")[-2:])
                    if member.isfile() and name in num_frames:
                        add(name, member.size, tar.extractfile(member).read)
    except Exception as error:  # tarfile, gzip and zlib raise anything on damage
        problems.add("archives of boxes that cannot be read", f"{archive.name} ({error})")
        texts.update(dict.fromkeys(num_frames.keys() - texts.keys()))
    return texts


class _Bounded:
    """A file that ends with an error after a number of bytes."""

    def __init__(self, file: Any, most: int) -> None:
        self.file, self.most, self.left = file, most, most

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"it unpacks to more than {self.most} bytes, too many for boxes of these frames")
        return data


def read_joints(
    root: Path, lists: dict[str, FrameList], problems: Problems
) -> tuple[npt.NDArray[np.float32], tuple[str, ...]] | None:
    """(N, J, 2) joints of all frames and their names (empty where the files give none); None without any."""
    folder = root / "joints"
    if not folder.exists():
        return None
    parts: list[npt.NDArray[np.float32]] = []
    names: tuple[str, ...] = ()
    for category, frames in lists.items():
        path = folder / f"joints_{category}.npz"
        try:
            arrays = read_arrays(path, ("joints",), ("joint_names",))
        except FileNotFoundError:
            problems.add("categories without joints, though joints/ is there", path.name)
            continue
        except ValueError as error:
            problems.add("joint files that cannot be read", f"{path.name} ({error})")
            continue
        joints = arrays["joints"]
        if joints.ndim != 3 or joints.shape[2] < 2 or len(joints) != len(frames.names):
            problems.add(
                "joint files that do not match the frame list",
                f"{path.name} (shape {joints.shape} for {len(frames.names)} frames)",
            )
            continue
        if joints.dtype.kind not in "fiu" or np.isinf(joints).any():
            problems.add("joint files that hold other than finite numbers or NaN", path.name)
            continue
        names = tuple(str(name) for name in np.ravel(arrays.get("joint_names", names)))
        parts.append(joints[:, :, :2].astype(np.float32))
    if len({part.shape[1] for part in parts}) > 1:
        problems.add("joint files with different numbers of joints", *(str(part.shape) for part in parts))
        return None
    return (np.concatenate(parts), names) if parts else None
