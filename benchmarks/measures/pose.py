"""Accuracy of poses (Tables 2-4): PCP of sticks, PCKh of joints.

Joints are (N, J, 2) arrays, x to the right and y down, both in one unit (pixels, or shares of a square crop).
NaN among true joints means: not annotated. What cannot be judged is left out and counted in the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import KMeans

from benchmarks.measures.skeletons import LSP_SKELETON, MPII_SKELETON, Skeleton
from pml_posets._validation import as_numbers, as_real

HEAD_BOX_SHARE = 0.6
"""MPII's head size is this share of the diagonal of the annotated head box."""


@dataclass(frozen=True)
class PoseScore:
    """Percentages of sticks (PCP) or joints (PCKh) that are right.

    Attributes:
        total: plain mean of `parts`; NaN as soon as one of them is.
        parts: name of the part (or row) to percent, NaN where no sample could be judged.
        counted: name to how many sticks (or joints) of all samples were judged.
        excluded: reason to how many were not; with `counted` they add up to all.
    """

    total: float
    parts: dict[str, float]
    counted: dict[str, int]
    excluded: dict[str, int]

    @property
    def num_excluded(self) -> int:
        """How many sticks (or joints) could not be judged."""
        return sum(self.excluded.values())


def pose_classes(joints: ArrayLike, num_classes: int = 100) -> NDArray[np.int64]:
    """Classes of alike poses, what the method supervised learns from: k-means of the joints.

    Joints are taken less their mean, over their mean distance from it. One that is not annotated takes its
    mean place among those that have it. Without two joints at different places nobody has a pose.

    Args:
        joints: (N, J, 2), NaN where not annotated.
        num_classes: at most; fewer where less than eight people would be in a class. Default 100.

    Returns:
        (N,) int64 in -1..num_classes - 1, -1: in no class.

    Raises:
        ValueError: if fewer than two have a pose.
    """
    every = as_numbers(joints, "joints")[..., :2].astype(np.float64)
    annotated: NDArray[np.bool_] = np.isfinite(every.mean(axis=2, keepdims=True))  # (N, J, 1)
    every = np.where(annotated, every, 0)
    counts = np.maximum(annotated.sum(axis=1, keepdims=True), 1)  # (N, 1, 1)
    every = (every - every.sum(axis=1, keepdims=True) / counts) * annotated
    spreads = np.linalg.norm(every, axis=2).sum(axis=1) / counts[:, 0, 0]
    known = spreads > 0
    if known.sum() < 2:
        raise ValueError(f"supervised needs two people with a pose, got {known.sum()} of {len(every)}")
    places, annotated = every[known] / spreads[known, None, None], annotated[known]
    means = places.sum(axis=0) / np.maximum(annotated.sum(axis=0), 1)  # (J, 2)
    places = np.where(annotated, places, means)
    labels = np.full(len(every), -1, np.int64)
    count = max(2, min(num_classes, len(places) // 8))
    labels[known] = KMeans(count, n_init=1, random_state=0).fit_predict(places.reshape(len(places), -1))
    return labels


def pcp(
    predicted: ArrayLike | torch.Tensor,
    true: ArrayLike | torch.Tensor,
    skeleton: Skeleton = LSP_SKELETON,
    threshold: float = 0.5,
    strict: bool = True,
) -> PoseScore:
    """Percentage of correct parts: stick (a, b) of length l is right if, for the predicted ends a', b',

        strict:   |a' - a| <= threshold l  and  |b' - b| <= threshold l
        relaxed:  ( |a' - a| + |b' - b| ) / 2 <= threshold l

    A part's percentage is the mean of its sticks (left and right), the total the plain mean of the parts.

    Args:
        predicted: (N, J, 2) numbers, finite.
        true: (N, J, 2) numbers in the same unit; NaN for a joint without annotation.
        skeleton: names and sticks. Default: `LSP_SKELETON`.
        threshold: share of the stick's length, > 0. Default .5, as in the paper.
        strict: both ends (default), or their mean error.

    Returns:
        `PoseScore`. Sticks with a missing joint or of true length 0 are left out. Without samples all is NaN.

    Raises:
        TypeError, ValueError: for other shapes or dtypes, and values out of range.

    Source: Bautista et al. (CVPR 2017), section 4.1.2 and Tables 2 and 3 (PCP@0.5).
    Differs from the paper: it does not say which PCP is meant; the strict one reproduces its row of ground
        truth on Leeds Sports. Sticks of length 0 (there are two in the test set) are left out.
    """
    predicted, true, present = _check_joints(predicted, true, skeleton)
    threshold = as_real(threshold, "threshold", low=0, open_low=True)
    shape = (len(true), len(skeleton.sticks))
    right, there, long = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
    for s, stick in enumerate(skeleton.sticks):
        ends = [skeleton.indices(names) for names in (stick.start, stick.end)]
        there[:, s] = present[:, ends[0] + ends[1]].all(axis=1)
        guesses, (start, end) = ([of[:, joints].mean(axis=1) for joints in ends] for of in (predicted, true))
        errors = np.stack([_lengths(guesses[0] - start), _lengths(guesses[1] - end)])  # (2, N)
        length = _lengths(end - start)
        long[:, s] = length > 0
        error = errors.max(axis=0) if strict else errors.mean(axis=0)
        right[:, s] = error <= threshold * length
    columns = {
        part: [s for s, stick in enumerate(skeleton.sticks) if stick.part == part] for part in skeleton.parts
    }
    excluded = {"missing joint": int((~there).sum()), "zero length": int((there & ~long).sum())}
    return _score(right, there & long, columns, excluded)


def pckh(
    predicted: ArrayLike | torch.Tensor,
    true: ArrayLike | torch.Tensor,
    head_size: ArrayLike | torch.Tensor,
    threshold: float = 0.5,
    skeleton: Skeleton = MPII_SKELETON,
) -> PoseScore:
    """Percentage of correct keypoints: joint j of sample n is right if |x'_nj - x_nj| <= threshold h_n.

    Left and right are averaged into one row; the total is the plain mean of the rows, ten of them for MPII.

    Args:
        predicted, true, threshold: as of `pcp`.
        head_size: (N,) h in the same unit, from 0, NaN where unknown: see `head_neck_distance` (the paper's)
            and `head_box_size` (MPII's own).
        skeleton: names and which of them are left and right. Default: `MPII_SKELETON`.

    Returns:
        `PoseScore`, `parts` by row. Joints without annotation, or of a sample whose head size is 0 or
        unknown, are left out.

    Raises:
        TypeError, ValueError: as `pcp`.

    Source: Bautista et al. (CVPR 2017), section 4.1.3 and Table 4 (PCKh@0.5), whose total, 72.66 for 72.7, is
        the plain mean of ten rows. MPII's own total leaves out thorax and pelvis, and weights each joint by
        how often it is annotated.
    """
    predicted, true, present = _check_joints(predicted, true, skeleton)
    threshold = as_real(threshold, "threshold", low=0, open_low=True)
    size = as_numbers(head_size, "head_size")
    if size.shape != (len(true),):
        raise ValueError(f"head_size must have shape ({len(true)},), one a sample, got {size.shape}")
    if np.isinf(size).any() or (size < 0).any():
        raise ValueError(
            "head_size must be from 0 and finite, NaN where unknown; found a negative or infinite one"
        )
    known, large = ~np.isnan(size)[:, None], (size != 0)[:, None]
    with np.errstate(invalid="ignore"):
        right = _lengths(predicted - true) <= threshold * size[:, None]  # (N, J)
    excluded = {
        "missing joint": int((~present).sum()),
        "missing head size": int((present & ~known).sum()),
        "zero head size": int((present & ~large).sum()),
    }
    return _score(right, present & known & large, skeleton.rows, excluded)


def head_neck_distance(
    true: ArrayLike | torch.Tensor, skeleton: Skeleton = MPII_SKELETON
) -> NDArray[np.float64]:
    """(N,) head sizes: the distance from neck to head top, NaN where one of them is missing.

    Source: Bautista et al. (CVPR 2017), Table 4, as measured by their published code.
    """
    true = _as_joints(true, "true", skeleton)
    neck, head = skeleton.indices(skeleton.neck_and_head)
    return _lengths(true[:, head] - true[:, neck])


def head_box_size(boxes: ArrayLike | torch.Tensor) -> NDArray[np.float64]:
    """(N,) head sizes as MPII measures them: 0.6 of the diagonal of the annotated head box.

    Args:
        boxes: (N, 4) numbers, x1, y1, x2, y2 with x1 <= x2 and y1 <= y2; NaN where there is no box.

    Raises:
        TypeError, ValueError: for anything else.
    """
    corners = as_numbers(boxes, "boxes")
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise ValueError(f"boxes must have shape (N, 4) of x1, y1, x2, y2, got {corners.shape}")
    sides = corners[:, 2:] - corners[:, :2]
    if np.isinf(corners).any() or (sides < 0).any():
        raise ValueError("boxes must be finite with x1 <= x2 and y1 <= y2: are they x, y, width, height?")
    return HEAD_BOX_SHARE * _lengths(sides)


def _score(
    right: NDArray[np.bool_], counted: NDArray[np.bool_], columns: dict[str, Any], excluded: dict[str, int]
) -> PoseScore:
    """Percentages by column from (N, S) what was right and what counts."""
    num_counted = counted.sum(axis=0)  # (S,)
    with np.errstate(invalid="ignore"):
        percent = 100 * (right & counted).sum(axis=0) / num_counted
    parts, found = {}, {}
    for name, members in columns.items():
        known = [s for s in members if num_counted[s]]
        parts[name] = float(percent[known].mean()) if known else math.nan
        found[name] = int(num_counted[list(members)].sum())
    return PoseScore(float(np.mean(list(parts.values()))), parts, found, excluded)


def _check_joints(
    predicted: Any, true: Any, skeleton: Skeleton
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Predicted and true joints, and (N, J) which of the true ones are to be judged."""
    true, predicted = _as_joints(true, "true", skeleton), _as_joints(predicted, "predicted", skeleton)
    if predicted.shape != true.shape:
        raise ValueError(f"predicted must have the shape {true.shape} of true, got {predicted.shape}")
    bad = np.flatnonzero(~np.isfinite(predicted).all(axis=(1, 2)))
    if bad.size:
        raise ValueError(
            f"predicted must be finite, found NaN or infinity in {bad.size} of {len(predicted)} samples "
            f"(first: sample {bad[0]}): every joint needs a prediction"
        )
    return predicted, true, ~np.isnan(true).any(axis=2)


def _as_joints(joints: Any, name: str, skeleton: Skeleton) -> NDArray[np.float64]:
    array = as_numbers(joints, name)
    if array.ndim != 3 or array.shape[1:] != (len(skeleton.joints), 2):
        raise ValueError(
            f"{name} must have shape (N, {len(skeleton.joints)}, 2) to match the skeleton, got {array.shape}"
        )
    if name == "true" and np.isinf(array).any():
        raise ValueError("true must be finite, found infinity: mark joints without annotation by NaN")
    return array.astype(np.float64)


def _lengths(vectors: NDArray[Any]) -> NDArray[np.float64]:
    return np.hypot(vectors[..., 0], vectors[..., 1])
