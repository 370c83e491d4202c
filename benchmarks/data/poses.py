"""Readers of Leeds Sports Pose, its extended training set, and the drawn figures; `mpii` reads MPII.

<root>/images/im0001.jpg, ...    im00001.jpg in the extended set
<root>/joints.mat                the original release: joints (3, 14, N), or (14, 3, N), in pixels
<root>/joints.npz                or person crops: joints (N, 14, 3), the first two in [0, 1] of the crop
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.data.files import read_arrays, read_matlab
from benchmarks.data.olympic import OlympicFrames, load_tree
from benchmarks.data.people import SLACK, People, PoseData
from benchmarks.figures.dataset import load_truth
from benchmarks.measures.skeletons import LSP_SKELETON, Skeleton

__all__ = ["FIGURE_SKELETON", "PoseData", "load_figures", "load_lsp", "load_lspet"]

FIGURE_SKELETON: Skeleton = replace(
    LSP_SKELETON,
    joints=(*LSP_SKELETON.joints[:-1], "face"),
    sticks=(*LSP_SKELETON.sticks[:-1], replace(LSP_SKELETON.sticks[-1], end=("face",))),
    neck_and_head=("neck", "face"),
)
"""The joints of Leeds Sports Pose; the drawn figures have a face in place of the head's top."""
CROP_SLACK = 1e-3


def load_lsp(root: str | os.PathLike[str], *, skip_unreadable: bool = False) -> PoseData:
    """Leeds Sports Pose, as crops or as it was released: the first half to learn from, the second to test on.

    Every joint is annotated, the occluded ones too, and counts. Of the original release the crops are square,
    their side 1.3 times the longer side of the joints' box.

    Args:
        root: the folder with images/ and joints.mat or joints.npz.
        skip_unreadable: leave out people whose image is missing or damaged; default: that is an error.

    Source: Johnson and Everingham (BMVC 2010); the split is that of Bautista et al., section 4.1.2.
    Differs from the paper: it does not say how people are cropped; in the authors' public code the sides of
        the box grow each on its own, by 1.5 to 2.
    """
    return _load_leeds(Path(root), "LSP", third_is_visible=False, skip_unreadable=skip_unreadable)


def load_lspet(root: str | os.PathLike[str], *, skip_unreadable: bool = False) -> PoseData:
    """The extended training set of Leeds Sports Pose: everybody to learn from; joints may be missing.

    The third number of a joint says whether it is annotated; all else is as of `load_lsp`.

    Source: Johnson and Everingham (CVPR 2011).
    """
    return _load_leeds(Path(root), "LSPET", third_is_visible=True, skip_unreadable=skip_unreadable)


def load_figures(root: str | os.PathLike[str]) -> PoseData:
    """The drawn figures of `make_figures`: every fourth athlete is tested on (of fewer than four, the last).

    Joints that the box cuts off count as not visible, and are named.
    """
    truth = load_truth(root)
    tree = load_tree(root)
    chosen = [truth.joint_names.index(name) for name in FIGURE_SKELETON.joints]
    people = People(
        tree.frame_names,
        [Path(path) for path in tree.paths],
        truth.joints[:, chosen],
        np.ones((len(tree), len(chosen)), bool),
        FIGURE_SKELETON,
        rows=np.arange(len(tree)),
    )
    people.check_joints(np.ones((len(tree), 2)), 0.0)
    gone = np.setdiff1d(np.arange(len(tree)), people.others["rows"])
    if len(gone):
        tree = tree.without(gone)
    num_sources = len(tree.source_names)
    tested = np.arange(num_sources) % 4 == 3
    tested[-1] |= num_sources < 4
    name = Path(root).resolve().name
    return people.finish(name, ~tested[tree.sources], images=OlympicFrames(tree))


def _load_leeds(root: Path, name: str, third_is_visible: bool, skip_unreadable: bool) -> PoseData:
    cropped = (root / "joints.npz").is_file()
    if not cropped and not (root / "joints.mat").is_file():
        raise FileNotFoundError(
            f"{root} holds neither joints.mat (the original release of {name}) nor joints.npz (its crops): "
            "give the folder that has one of them beside images/"
        )
    joints = _read_crop_joints(root / "joints.npz") if cropped else _read_mat_joints(root / "joints.mat")
    files = _numbered_images(root / "images")
    visible = joints[:, :, 2] == 1 if third_is_visible else np.ones(joints.shape[:2], bool)
    digits = max((len(path.stem) for path in files.values()), default=6) - 2
    names = [f"im{number:0{digits}d}" for number in range(1, len(joints) + 1)]
    people = People(
        names,
        [files.get(number, root / "images" / f"{one}.jpg") for number, one in enumerate(names, start=1)],
        joints[:, :, :2] if cropped else joints[:, :, :2] - 0.5,  # MATLAB's first pixel has its middle at 1
        visible,
        LSP_SKELETON,
        train=np.ones(len(joints), bool) if third_is_visible else np.arange(len(joints)) < len(joints) / 2,
    )
    people.note(
        "image without annotation",
        [files[number].stem for number in sorted(files) if not 1 <= number <= len(joints)],
    )
    sizes = people.sizes(skip_unreadable)
    people.check_joints(np.ones_like(sizes) if cropped else sizes, CROP_SLACK if cropped else SLACK)
    boxes = None if cropped else people.cut()
    return people.finish(name, people.others["train"], test=not third_is_visible, boxes=boxes)


def _read_crop_joints(path: Path) -> npt.NDArray[np.float64]:
    """(N, 14, 3) of joints.npz."""
    arrays = read_arrays(path, ("joints",), ("joint_names",))
    joints = arrays["joints"]
    if joints.ndim != 3 or joints.shape[1:] != (14, 3) or not np.issubdtype(joints.dtype, np.floating):
        raise ValueError(
            f"joints of {path} must have shape (N, 14, 3) of x, y and a flag, got {joints.shape} "
            f"{joints.dtype}"
        )
    order = tuple(str(name) for name in np.ravel(arrays.get("joint_names", LSP_SKELETON.joints)))
    if order != LSP_SKELETON.joints:
        raise ValueError(f"the joints of {path} are {order}: expected {LSP_SKELETON.joints}")
    return joints.astype(np.float64)


def _read_mat_joints(path: Path) -> npt.NDArray[np.float64]:
    """(N, 14, 3) of the original release's joints.mat."""
    joints = np.asarray(read_matlab(path).get("joints", np.zeros(0)))
    joints = joints[:, :, None] if joints.ndim == 2 else joints  # MATLAB drops an axis of length 1
    if joints.ndim != 3 or sorted(joints.shape[:2]) != [3, 14] or joints.dtype.kind not in "fiu":
        raise ValueError(
            f"joints of {path} must have shape (3, 14, N) or (14, 3, N), got {joints.shape} {joints.dtype}: "
            "give joints.mat as it was released"
        )
    return joints.transpose((2, 1, 0) if joints.shape[0] == 3 else (2, 0, 1)).astype(np.float64)


def _numbered_images(folder: Path) -> dict[int, Path]:
    """Number to path of the images im<number>.jpg."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: expected it to hold im0001.jpg and so on")
    names = ((re.fullmatch(r"im(\d+)\.(jpe?g|png)", path.name.lower()), path) for path in folder.iterdir())
    found = {int(match[1]): path for match, path in names if match}
    if not found:
        raise FileNotFoundError(f"{folder} holds no image im0001.jpg or the like")
    return found
