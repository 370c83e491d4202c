"""Any tree of postures in the layout of the Olympic Sports benchmark, checked and read.

frames/<category>/<sequence>/<name>.png     or .jpg; or frames/<category>/<sequence>.seq
image_pathes/imagePaths_<category>.txt      a line ./<sequence>/<name>.png a frame: its id is its place
labels_hdf5/labels_<category>.hdf5          anchors, pos_ids, neg_ids, pos_flipvals, neg_flipvals
bboxes/<category>/<sequence>.bb             optional, or bboxes.tar.gz: frame xmin ymin xmax ymax
joints/joints_<category>.npz                optional: joints (frames, J, 2)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.data import Dataset

from benchmarks.data.files import files_id
from benchmarks.data.olympic_files import (
    LABEL_FOLDER,
    LIST_FOLDERS,
    FrameList,
    Problems,
    TreeError,
    find_categories,
    has_boxes,
    read_boxes,
    read_frame_list,
    read_joints,
    read_labels,
)
from benchmarks.data.olympic_tree import OlympicTree, source_of
from benchmarks.data.seq_files import SeqFile
from benchmarks.measures.anchors import RetrievalLabels
from pml_posets.data.cache import digest
from pml_posets.data.datasets import UnreadableImageError, as_index

__all__ = ["OlympicFrames", "OlympicTree", "TreeError", "find_unreadable", "load_tree", "source_of"]

SUFFIXES = (".png", ".jpg", ".jpeg")


class OlympicFrames(Dataset[Any]):
    """The person crops of a tree as a dataset: item i is frame i's box, an RGB PIL image.

    Frames are read when asked for, and no file stays open, so any number of worker processes may share it.
    The crop is a square about the box, so that postures keep their proportions; what lies outside the frame
    repeats its border.

    Args:
        tree: with frames.

    Raises:
        ValueError: the tree has no frames.
        UnreadableImageError: (an OSError) on access, when the frame cannot be read; the message names it.
    """

    def __init__(self, tree: OlympicTree) -> None:
        if not tree.paths:
            raise ValueError(f"{tree.root} was loaded without its frames (require_frames=False)")
        self.tree = tree

    def __len__(self) -> int:
        return len(self.tree)

    def __getitem__(self, index: int) -> Any:
        image = self.tree.open_frame(as_index(index, len(self)))
        return image if self.tree.boxes is None else crop_box(image, self.tree.boxes[index])

    @property
    def data_id(self) -> str:
        """A digest that changes with the frames (names, sizes, times of change) and the boxes."""
        tree = self.tree
        videos = [file.path for file in tree.seq_files.values()]
        return digest(
            files_id([*(Path(path) for path in tree.paths if path), *videos]),
            [tree.categories, tree.names, tree.sequences, tree.frame_numbers],
            np.zeros(0) if tree.boxes is None else tree.boxes,
        )


def crop_box(image: Image.Image, box: npt.NDArray[np.int64]) -> Image.Image:
    """The square about a box xmin, ymin, xmax, ymax (1-based, inclusive) of an image; the border repeats."""
    left, top, right, bottom = float(box[0] - 1), float(box[1] - 1), float(box[2]), float(box[3])
    side = max(right - left, bottom - top)
    x0, y0 = round((left + right - side) / 2), round((top + bottom - side) / 2)
    x1, y1 = x0 + max(round(side), 1), y0 + max(round(side), 1)
    if x0 >= 0 and y0 >= 0 and x1 <= image.width and y1 <= image.height:
        return image.crop((x0, y0, x1, y1))
    columns = np.clip(np.arange(x0, x1), 0, image.width - 1)
    rows = np.clip(np.arange(y0, y1), 0, image.height - 1)
    return Image.fromarray(np.asarray(image)[rows[:, None], columns])


def find_unreadable(tree: OlympicTree) -> dict[int, str]:
    """Decode every frame once, in threads: dataset index to reason of those that cannot be read, by index."""

    def check(index: int) -> str | None:
        try:
            tree.open_frame(index)
        except UnreadableImageError as error:
            return str(error.__cause__)
        return None

    with ThreadPoolExecutor(4) as pool:
        reasons = pool.map(check, range(len(tree)), chunksize=64)
        return {i: reason for i, reason in enumerate(reasons) if reason is not None}


def load_tree(
    root: str | os.PathLike[str],
    *,
    categories: Sequence[str] | None = None,
    require_frames: bool = True,
    skip_unreadable: bool = False,
) -> OlympicTree:
    """Read a tree in the Olympic Sports layout (see the module) and check that nothing is missing.

    Args:
        root: its folder.
        categories: read these only; None (default): all.
        require_frames: False reads the annotation alone; such a tree has no `paths`.
        skip_unreadable: decode every frame, and leave out, counted and named in `excluded`, those that are
            missing or damaged. Default: a missing frame is an error, and a damaged one when it is read.

    Raises:
        TreeError: (a ValueError) one message that lists every problem of the tree, how many files it concerns
            and the first few of them.
    """
    root = Path(root)
    problems = Problems()
    lists, labels = _read_annotation(root, categories, problems)
    boxes = read_boxes(root, lists, problems) if has_boxes(root) else None
    joints = read_joints(root, lists, problems)
    frames = _Frames()
    if require_frames:
        if any((root / name).is_dir() for name in ("frames", *lists)):
            for category, listed in lists.items():
                _find_frames(root, category, listed, frames, problems, skip_unreadable)
        else:
            problems.add(f"no frames: expected {root / 'frames'} with a folder a category")
    problems.raise_if_any(root)
    tree = _assemble(root, lists, labels)
    numbers = {name: i for i, name in enumerate(tree.sequence_names)}
    tree = replace(
        tree,
        boxes=boxes,
        joints=None if joints is None else joints[0],
        joint_names=() if joints is None else joints[1],
        paths=tuple(frames.paths),
        seq_files={numbers[name]: file for name, file in frames.seq_files.items()},
    )
    if skip_unreadable and require_frames:
        bad = {**find_unreadable(tree), **frames.missing}
        if bad:
            order = sorted(bad)
            tree = tree.without(order, [f"{tree.describe(i)}: {bad[i]}" for i in order])
    return tree


def _read_annotation(
    root: Path, categories: Sequence[str] | None, problems: Problems
) -> tuple[dict[str, FrameList], dict[str, RetrievalLabels]]:
    """Frame lists and label files of the categories that were asked for."""
    if not root.is_dir():
        raise TreeError(f"{root} is no folder: expected one with frames/, image_pathes/ and {LABEL_FOLDER}/")
    list_paths, label_paths = find_categories(root)
    if not list_paths:
        problems.add(f"no frame list {LIST_FOLDERS[0]}/imagePaths_<category>.txt")
    if not label_paths:
        problems.add(f"no label file {LABEL_FOLDER}/labels_<category>.hdf5")
    wanted = sorted(set(categories)) if categories is not None else sorted({*list_paths, *label_paths})
    if categories is not None and not wanted:
        raise ValueError("categories must name at least one category, got none")
    for paths, what in ((list_paths, "frame list"), (label_paths, "label file")):
        absent = [name for name in wanted if name not in paths] if paths else []
        if absent:
            problems.add(f"categories without a {what}", *absent)
    lists = {name: read_frame_list(list_paths[name], problems) for name in wanted if name in list_paths}
    labels: dict[str, RetrievalLabels] = {}
    for name, frames in lists.items():
        if name in label_paths and frames.names:
            read = read_labels(label_paths[name], len(frames.names), problems)
            if read is not None:
                labels[name] = read
    return lists, labels


def _assemble(root: Path, lists: dict[str, FrameList], labels: dict[str, RetrievalLabels]) -> OlympicTree:
    pairs = [(category, name) for category, frames in lists.items() for name in frames.sequences]
    of_pair = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
    source_of_pair = {pair: source_of(*pair) for pair in of_pair}
    source_names = {name: number for number, name in enumerate(dict.fromkeys(source_of_pair.values()))}
    counts = [len(frames.names) for frames in lists.values()]
    return OlympicTree(
        root=root,
        categories=tuple(lists),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        names=tuple(name for frames in lists.values() for name in frames.names),
        sequence_names=tuple("/".join(pair) for pair in of_pair),
        sequences=np.array([of_pair[pair] for pair in pairs], dtype=np.int64),
        frame_numbers=np.concatenate([frames.numbers for frames in lists.values()]),
        source_names=tuple(source_names),
        sources=np.array([source_names[source_of_pair[pair]] for pair in pairs], dtype=np.int64),
        labels=labels,
    )


@dataclass
class _Frames:
    """Paths of all frames, .seq files by `<category>/<sequence>`, reasons of missing frames by index."""

    paths: list[str] = field(default_factory=list)
    seq_files: dict[str, SeqFile] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)


def _find_frames(
    root: Path, category: str, listed: FrameList, frames: _Frames, problems: Problems, skip_missing: bool
) -> None:
    """Add the frames of a category."""
    folders = [folder for folder in (root / "frames" / category, root / category) if folder.is_dir()]
    if not folders and listed.names:
        problems.add("categories without a folder of frames", category)
        frames.paths.extend([""] * len(listed.names))
        return
    located = {name: _locate(folders, name) for name in dict.fromkeys(listed.sequences)}
    lost = [name for name, where in located.items() if where is None]
    broken = [where for where in located.values() if isinstance(where, str)]
    if lost and (not skip_missing or len(lost) == len(located)):
        problems.add(f"sequences of {category} with neither a folder of frames nor a .seq file", *lost)
    if broken and not skip_missing:
        problems.add(".seq files that cannot be read", *broken)
    absent = []
    for name, sequence, number in zip(listed.names, listed.sequences, listed.numbers, strict=True):
        where, path, reason = located[sequence], "", None
        if isinstance(where, SeqFile):
            frames.seq_files[f"{category}/{sequence}"] = where
            if number >= len(where):
                reason = f"{where.path.name} has only {len(where)} frames"
                absent.append(f"{category}/{name} ({reason})")
        elif isinstance(where, dict):
            path = where.get(name.split("/")[1]) or where.get(Path(name).stem, "")
            if not path:
                reason = "missing"
                absent.append(f"{category}/{name}")
        else:
            reason = where or "its sequence is missing"
        if reason is not None:
            frames.missing[len(frames.paths)] = reason
            path = str(root / "frames" / category / name)
        frames.paths.append(path)
    if absent and not skip_missing:
        problems.add(f"frames of {category} are missing", *absent)


def _locate(folders: list[Path], sequence: str) -> dict[str, str] | SeqFile | str | None:
    """A sequence's image files by name and by stem; or its .seq file, or what is wrong with it; or None."""
    for folder in folders:
        for path in (folder / f"{sequence}.seq", folder / sequence / f"{sequence}.seq"):
            if os.path.isfile(path):
                try:
                    return SeqFile(path)
                except (OSError, ValueError) as error:
                    return str(error)
        if os.path.isdir(folder / sequence):
            with os.scandir(folder / sequence) as entries:
                files = {e.name: e.path for e in entries if e.name.lower().endswith(SUFFIXES)}
            return {Path(name).stem: path for name, path in files.items()} | files
    return None
