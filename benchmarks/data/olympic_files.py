"""Readers of the annotation files of an Olympic Sports tree: frame lists, label files, boxes, joints.

Each reader gives what it could read and notes what is wrong in `Problems`: one message can then name it all.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.measures.anchors import RetrievalLabels

LIST_FOLDERS = ("image_pathes", "image_paths", "imagePathes", "imagePaths")
LABEL_FOLDER = "labels_hdf5"
BOX_ARCHIVES = ("bboxes.tar.gz", "bboxes.tgz", "bboxes.tar")
_NAMED = 5


class TreeError(ValueError):
    """A data tree that is incomplete or damaged; the message lists everything that is wrong with it."""


@dataclass
class Problems:
    """What is wrong with a tree: sentences, each with the things it holds of."""

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
            shown = ", ".join(names[:_NAMED]) + (
                f", ... ({len(names)} in all)" if len(names) > _NAMED else ""
            )
            lines.append(f"- {sentence}" + (f": {shown}" if names else ""))
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise TreeError(f"{root} cannot be used as an Olympic Sports tree, {count}:\n" + "\n".join(lines))


@dataclass(frozen=True)
class FrameList:
    """The frames of one category in the order of its list: the id of a frame is its place here."""

    names: tuple[str, ...]
    sequences: tuple[str, ...]
    numbers: npt.NDArray[np.int64]


def find_categories(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Category to frame list, and category to label file, as far as they are there, by sorted category."""
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
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.add("frame lists that cannot be read", f"{path.name} ({error})")
        return FrameList((), (), np.zeros(0, dtype=np.int64))
    while lines and not lines[-1].strip():
        lines.pop()
    names, sequences, numbers, wrong = [], [], [], []
    for i, line in enumerate(lines):
        match = re.fullmatch(r"(?:\./)?([^/]+)/([^/]*?(\d+)\.\w+)", line.strip())
        if match is None:
            wrong.append(f"{path.name} line {i + 1} ({line.strip()[:40]!r})")
            continue
        names.append(f"{match[1]}/{match[2]}")
        sequences.append(match[1])
        numbers.append(int(match[3]))
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

    keys = ("anchors", "pos_ids", "neg_ids", "pos_flipvals", "neg_flipvals")
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in keys if key not in file]
            if missing:
                problems.add(
                    "label files without all their data sets", f"{path.name} (no {', '.join(missing)})"
                )
                return None
            anchors, *rows = (file[key][()] for key in keys)
    except (OSError, RuntimeError, KeyError) as error:
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


def has_boxes(root: Path) -> bool:
    """Whether there is a folder or an archive of boxes."""
    return (root / "bboxes").is_dir() or any((root / name).is_file() for name in BOX_ARCHIVES)


def read_boxes(root: Path, lists: dict[str, FrameList], problems: Problems) -> npt.NDArray[np.int64]:
    """(N, 4) boxes xmin, ymin, xmax, ymax (1-based, inclusive pixels) of all frames, categories in order.

    Box files have lines `frame xmin ymin xmax ymax`; `frame` is the number in the frame's name plus 1.
    """
    texts = _box_texts(root, problems)
    boxes = []
    for category, frames in lists.items():
        table = np.zeros((len(frames.names), 4), dtype=np.int64)
        sequences = np.array(frames.sequences)
        for sequence in dict.fromkeys(frames.sequences):
            rows = np.flatnonzero(sequences == sequence)
            name = f"{category}/{sequence}.bb"
            if name not in texts:
                problems.add("sequences without a box file", name)
                continue
            found = _parse_boxes(texts[name])
            if found is None:
                problems.add("box files with lines that are not five numbers", name)
                continue
            if len(found) != len(rows):
                problems.add(
                    "box files with another number of lines than their sequence has frames",
                    f"{name} ({len(found)} boxes, {len(rows)} frames)",
                )
                continue
            by_number = {int(row[0]): row[1:] for row in found}
            number = frames.numbers[rows] + 1
            absent = [int(n) for n in number if int(n) not in by_number]
            if absent:
                problems.add(
                    "box files that miss frames of their sequence (a box's number: the frame's plus 1)",
                    f"{name} ({len(absent)} frames, the first is {absent[0]})",
                )
                continue
            table[rows] = [by_number[int(n)] for n in number]
            flat = (table[rows, 2] < table[rows, 0]) | (table[rows, 3] < table[rows, 1])
            if flat.any():
                problems.add(
                    "box files with boxes that end before they start",
                    f"{name} (frame {number[flat.argmax()]})",
                )
        boxes.append(table)
    return np.concatenate(boxes) if boxes else np.zeros((0, 4), dtype=np.int64)


def read_joints(
    root: Path, lists: dict[str, FrameList], problems: Problems
) -> tuple[npt.NDArray[np.float32], tuple[str, ...]] | None:
    """(N, J, 2) joints of all frames and their names (empty where the files give none); None without any."""
    folder = root / "joints"
    if not folder.is_dir():
        return None
    parts: list[npt.NDArray[np.float32]] = []
    names: tuple[str, ...] = ()
    for category, frames in lists.items():
        path = folder / f"joints_{category}.npz"
        if not path.is_file():
            problems.add("categories without joints, though joints/ is there", path.name)
            continue
        try:
            with np.load(path, allow_pickle=False) as file:
                joints: npt.NDArray[Any] = file["joints"]
                names = tuple(str(name) for name in file["joint_names"]) if "joint_names" in file else names
        except Exception as error:  # whatever zipfile, zlib and numpy raise on a damaged file
            problems.add("joint files that cannot be read", f"{path.name} ({error})")
            continue
        if joints.ndim != 3 or joints.shape[2] < 2 or len(joints) != len(frames.names):
            problems.add(
                "joint files that do not match the frame list",
                f"{path.name} (shape {joints.shape} for {len(frames.names)} frames)",
            )
            continue
        parts.append(joints[:, :, :2].astype(np.float32))
    if len({part.shape[1] for part in parts}) > 1:
        problems.add("joint files with different numbers of joints", *(str(part.shape) for part in parts))
        return None
    return (np.concatenate(parts), names) if parts else None


def _box_texts(root: Path, problems: Problems) -> dict[str, str]:
    """The text of every box file by category/sequence.bb, from the folder or else from the archive."""
    if (root / "bboxes").is_dir():
        paths = sorted((root / "bboxes").glob("*/*.bb"))
        return {f"{p.parent.name}/{p.name}": p.read_text(encoding="utf-8", errors="replace") for p in paths}
    archive = next(root / name for name in BOX_ARCHIVES if (root / name).is_file())
    texts = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() and member.name.endswith(".bb") else None
                if file is not None:
                    texts["/".join(member.name.split("/")[-2:])] = file.read().decode("utf-8", "replace")
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        problems.add("archives of boxes that cannot be read", f"{archive.name} ({error})")
    return texts


def _parse_boxes(text: str) -> npt.NDArray[np.float64] | None:
    try:
        rows = np.array([line.split() for line in text.splitlines() if line.strip()], dtype=np.float64)
    except ValueError:
        return None
    return rows if rows.ndim == 2 and rows.shape[1] == 5 and np.isfinite(rows).all() else None
