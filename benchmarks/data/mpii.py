"""Reader of MPII Human Pose: the authors' annotation file, `mpii_human_pose_v1_u12_1.mat`, and their images.

RELEASE has one entry an image in `annolist` (its `image.name`, and a person each in `annorect`: the joints in
`annopoints.point` as x, y, id, is_visible, and the head's box x1, y1, x2, y2), and in `img_train` 1 for the
images of the training part; of the others the annotation was never released.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.data.files import read_matlab
from benchmarks.data.people import SLACK, People, PoseData
from benchmarks.measures.skeletons import MPII_SKELETON
from pml_posets._random import derive_seeds

__all__ = ["load_mpii"]

_NUM_JOINTS = len(MPII_SKELETON.joints)


def load_mpii(
    annotation_file: str | os.PathLike[str],
    image_folder: str | os.PathLike[str],
    *,
    complete: bool = True,
    test_share: float = 0.1,
    split_seed: int = 0,
    skip_unreadable: bool = False,
) -> PoseData:
    """The people of MPII's training part, some of them set apart to test on.

    Crops are square, their side 1.3 times the longer side of the joints' box. The test people are drawn by
    images, none of which has people on both sides, and are floor(test_share * people) wherever whole images
    can make up that number. The split does not depend on which images are there.

    Args:
        annotation_file: `mpii_human_pose_v1_u12_1.mat`.
        image_folder: with the images it names.
        complete: keep only people with all 16 joints (default); else every annotated one.
        test_share: part of the people to test on, in 0..1. Default 0.1.
        split_seed: of the draw, from 0.
        skip_unreadable: leave out people whose image is missing or damaged; default: that is an error.

    Source: Andriluka et al. (CVPR 2014); Bautista et al., section 4.1.3. That they set 1,991 of 19,919 people
        apart, those with all 16 joints, is from their public code.
    Differs from the paper: the people are drawn by images and by another seed; the authors' code draws them
        one by one, and stretches the joints' box (1 to 1.2 times) to a square.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must lie between 0 and 1, got {test_share}")
    annotation_file, image_folder = Path(annotation_file), Path(image_folder)
    if not image_folder.is_dir():
        raise FileNotFoundError(f"there is no folder of images {image_folder}: give MPII's images")
    persons = _read_people(annotation_file)
    if not persons.names:
        raise ValueError(f"{annotation_file} has no annotated person in a training image")
    people = People(
        persons.names,
        [image_folder / image for image in persons.images],
        np.array(persons.joints) - 0.5,  # MATLAB's first pixel has its middle at 1
        np.isfinite(persons.joints).all(axis=2),
        MPII_SKELETON,
        images=np.unique(persons.images, return_inverse=True)[1],
        head_boxes=np.array(persons.head_boxes) - 0.5,
    )
    for reason, names in persons.excluded.items():
        people.note(reason, names)
    people.drop("no joint annotated", ~people.visible.any(axis=1))
    if complete:
        people.drop("not all 16 joints annotated", ~people.visible.all(axis=1))
    people.others["test"] = _draw(people.others["images"], test_share, split_seed)
    sizes = people.sizes(skip_unreadable)
    people.check_joints(sizes, SLACK)
    boxes = people.cut()
    heads = people.others["head_boxes"]
    unknown = ~(heads[:, 2:] > heads[:, :2]).all(axis=1)
    people.note("no head box, not judged by it", [people.names[i] for i in np.flatnonzero(unknown)])
    heads = (heads - np.tile(boxes[:, :2], 2)) / boxes[:, 2:]
    heads[unknown] = np.nan
    return people.finish("MPII", ~people.others["test"], boxes=boxes, head_boxes=heads)


def _draw(images: npt.NDArray[np.int64], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """(N,) who is tested on: whole images at random, as long as their people fit into the number."""
    room = int(share * len(images) + 1e-9)
    numbers, counts = np.unique(images, return_counts=True)
    rng = np.random.default_rng(derive_seeds(seed))
    chosen = []
    for i in rng.permutation(len(numbers)):
        if counts[i] <= room:
            chosen.append(numbers[i])
            room -= int(counts[i])
    return np.isin(images, chosen)


@dataclass
class _Persons:
    """The people of an annotation file."""

    names: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    joints: list[npt.NDArray[np.float64]] = field(default_factory=list)  # (16, 2), NaN where missing
    head_boxes: list[npt.NDArray[np.float64]] = field(default_factory=list)  # (4,)
    excluded: dict[str, list[str]] = field(default_factory=dict)

    def note(self, reason: str, name: str) -> None:
        """Note what a reason leaves out."""
        self.excluded.setdefault(reason, []).append(name)


def _read_people(path: Path) -> _Persons:
    """Everybody who is annotated in a training image."""
    release = _read_release(path)
    entries = _structs(getattr(release, "annolist", None))
    in_training = np.ravel(getattr(release, "img_train", []))
    if not entries or len(entries) != len(in_training):
        raise ValueError(
            f"RELEASE of {path} must have an entry of img_train for each image of annolist, got "
            f"{len(in_training)} and {len(entries)}: give MPII's file as it was released"
        )
    persons = _Persons()
    for number in np.flatnonzero(in_training == 1):
        image = getattr(getattr(entries[number], "image", None), "name", None)
        if not isinstance(image, str):
            persons.note("annotation without an image's name", f"entry {number + 1}")
            continue
        rects = _structs(getattr(entries[number], "annorect", None))
        if not rects:
            persons.note("image without annotation", image)
        for place, rect in enumerate(rects, start=1):
            name = f"{image} person {place}"
            persons.names.append(name)
            persons.images.append(image)
            persons.joints.append(_joints_of(rect, name, persons))
            persons.head_boxes.append(np.array([_number(rect, key) for key in ("x1", "y1", "x2", "y2")]))
    return persons


def _read_release(path: Path) -> Any:
    content = read_matlab(path, struct_as_record=False, squeeze_me=True)
    if not _structs(content.get("RELEASE")):
        names = [name for name in content if not name.startswith("__")]
        raise ValueError(f"{path} holds no struct RELEASE, only {', '.join(names) or 'nothing'}")
    return content["RELEASE"]


def _joints_of(rect: Any, name: str, persons: _Persons) -> npt.NDArray[np.float64]:
    """(16, 2) joints of a person, NaN where there is none."""
    joints = np.full((_NUM_JOINTS, 2), np.nan)
    for points in _structs(getattr(rect, "annopoints", None)):
        for point in _structs(getattr(points, "point", None)):
            joint = _number(point, "id")
            if joint not in range(_NUM_JOINTS):
                persons.note("joint of an unknown id", f"{name} id {joint:g}")
                continue
            joints[int(joint)] = [_number(point, "x"), _number(point, "y")]
    return joints


def _structs(value: Any) -> list[Any]:
    """The structs in a value that scipy read: of one struct, an array of them, or nothing."""
    return [item for item in np.ravel(np.asarray(value, dtype=object)) if hasattr(item, "_fieldnames")]


def _number(struct: Any, name: str) -> float:
    """A field that is a number; NaN where it is missing or empty."""
    value = np.ravel(getattr(struct, name, np.nan))
    try:
        return float(value[0])
    except (IndexError, TypeError, ValueError):
        return float("nan")
