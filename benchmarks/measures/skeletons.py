"""Joints of the pose data sets: names, sticks between them, and their order in the mirror image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike, NDArray

from pml_posets._validation import as_numbers


@dataclass(frozen=True)
class Stick:
    """A line from joint to joint, or between the middles of several.

    Args:
        part: the column it counts for; sticks of one part (left and right) are averaged.
        start, end: names of the joints whose mean is this end, mostly one.
    """

    part: str
    start: tuple[str, ...]
    end: tuple[str, ...]


@dataclass(frozen=True)
class Skeleton:
    """Names of the joints of a data set, and the sticks between them.

    Args:
        joints: J names, in the order of the data set's arrays.
        sticks: the sticks that PCP judges, in the order of the table's columns.
        mirror: J indices; joint `mirror[j]` is seen in the place of joint j when the image is mirrored.
        neck_and_head: names of the two joints whose distance is the length of a head.

    Raises:
        ValueError: for names that occur twice or are unknown, or a mirror that is no swap of pairs.
    """

    joints: tuple[str, ...]
    sticks: tuple[Stick, ...]
    mirror: tuple[int, ...]
    neck_and_head: tuple[str, str]

    def __post_init__(self) -> None:
        if len(set(self.joints)) != len(self.joints):
            raise ValueError(f"joints must have a name each, got {self.joints}")
        used = {name for stick in self.sticks for name in (*stick.start, *stick.end)}
        unknown = sorted({*used, *self.neck_and_head} - set(self.joints))
        if unknown or not all(stick.start and stick.end for stick in self.sticks):
            raise ValueError(f"sticks must join joints of {self.joints}, found {unknown or 'an empty end'}")
        everyone = list(range(len(self.joints)))
        if sorted(self.mirror) != everyone or [self.mirror[j] for j in self.mirror] != everyone:
            raise ValueError(f"mirror must swap pairs of 0..{len(everyone) - 1}, got {self.mirror}")

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that PCP averages over, in the order of the sticks."""
        return tuple(dict.fromkeys(stick.part for stick in self.sticks))

    @property
    def rows(self) -> dict[str, tuple[int, ...]]:
        """The rows that PCKh averages over: a joint, or a right and left one under their common name."""
        rows: dict[str, tuple[int, ...]] = {}
        for j, other in enumerate(self.mirror):
            if other >= j:
                both = tuple(dict.fromkeys([j, other]))
                names = {self.joints[j]} if other == j else {_sideless(self.joints[i]) for i in both}
                name = "/".join(sorted(names))
                rows[name if name not in rows else "/".join(self.joints[i] for i in both)] = both
        return rows

    def indices(self, names: Sequence[str]) -> list[int]:
        """Where the joints of these names stand in the arrays."""
        return [self.joints.index(name) for name in names]


def _sideless(name: str) -> str:
    return name.removeprefix("left_").removeprefix("right_")


def _person(joints: tuple[str, ...], neck: str) -> Skeleton:
    """The ten sticks of PCP between the named joints, left and right by their names."""
    limbs = [
        ("UL", "hip", "knee"),
        ("LL", "knee", "ankle"),
        ("UA", "shoulder", "elbow"),
        ("LA", "elbow", "wrist"),
    ]
    torso = Stick("T", ("right_shoulder", "left_shoulder"), ("right_hip", "left_hip"))
    sides = [
        Stick(part, (f"{side}_{start}",), (f"{side}_{end}",))
        for part, start, end in limbs
        for side in ("right", "left")
    ]
    swapped = [j.replace("left_", "?").replace("right_", "left_").replace("?", "right_") for j in joints]
    return Skeleton(
        joints=joints,
        sticks=(torso, *sides, Stick("H", (neck,), ("head_top",))),
        mirror=tuple(joints.index(name) for name in swapped),
        neck_and_head=(neck, "head_top"),
    )


def _right_to_left(*names: str) -> tuple[str, ...]:
    return (*(f"right_{name}" for name in names), *(f"left_{name}" for name in reversed(names)))


_LEGS, _ARMS = _right_to_left("ankle", "knee", "hip"), _right_to_left("wrist", "elbow", "shoulder")
LSP_SKELETON = _person((*_LEGS, *_ARMS, "neck", "head_top"), "neck")
"""The 14 joints of Leeds Sports Pose; parts torso, upper and lower legs and arms, head: T UL LL UA LA H."""

MPII_SKELETON = _person((*_LEGS, "pelvis", "thorax", "upper_neck", "head_top", *_ARMS), "upper_neck")
"""The 16 joints of MPII Human Pose, in ten rows once left and right are joined."""


def mirror_joints(joints: ArrayLike | torch.Tensor, skeleton: Skeleton = LSP_SKELETON) -> NDArray[Any]:
    """Joints of the horizontally mirrored image: x becomes 1 - x, and left and right change places.

    Args:
        joints: (..., J, 2) in shares of the image, or with more columns, which only change places.
        skeleton: which joints are left and right. Default: `LSP_SKELETON`.

    Returns:
        A new float array of the same shape; float32 stays float32.

    Raises:
        TypeError, ValueError: if they are no numbers, or of another shape.
    """
    array = as_numbers(joints, "joints")
    if array.ndim < 2 or array.shape[-2] != len(skeleton.joints) or array.shape[-1] < 2:
        raise ValueError(f"joints must have shape (..., {len(skeleton.joints)}, 2), got {array.shape}")
    mirrored = array[..., list(skeleton.mirror), :]
    mirrored[..., 0] = 1 - mirrored[..., 0]
    return mirrored
