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

from benchmarks.measures.skeletons import LSP_SKELETON, MPII_SKELETON, Skeleton
from pml_posets._validation import as_numbers, as_real

HEAD_BOX_SHARE = 0.6
"""MPII's head size is this share of the diagonal of the annotated head box."""


@dataclass(frozen=True)
class PoseScore:
    """Percentages of sticks (PCP) or joints (PCKh) that are right.

    Attributes:
        total: plain mean of `parts`, in percent; NaN as soon as one of them is, since a mean of fewer columns
            would look like a total and be none.
        parts: name of the part (or row) to percent; left and right weigh the same in it. NaN where no sample
            could be judged.
        counted: name to how many sticks (or joints) of how many samples were judged.
        excluded: why sticks (or joints) were left out, to how many were: "missing joint", "zero length",
            "missing head size", "zero head size". The counts and `counted` add up to all there are.
    """

    total: float
    parts: dict[str, float]
    counted: dict[str, int]
    excluded: dict[str, int]

    @property
    def num_excluded(self) -> int:
        """How many sticks (or joints) could not be judged."""
        return sum(self.excluded.values())


def pcp(
    predicted: ArrayLike | torch.Tensor,
    true: ArrayLike | torch.Tensor,
    skeleton: Skeleton = LSP_SKELETON,
    threshold: float = 0.5,
    strict: bool = True,
    visible: ArrayLike | torch.Tensor | None = None,
) -> PoseScore:
    r"""Percentage of correct parts: how many sticks lie where they should, judged by their own length.

    Stick (a, b) of length l = |a - b| is right if

        strict:   |a' - a| <= threshold l  and  |b' - b| <= threshold l
        relaxed:  ( |a' - a| + |b' - b| ) / 2 <= threshold l

    for the predicted ends a', b'. A part's percentage is the mean of those of its sticks (left and right),
    the total the plain mean of the parts.

    Args:
        predicted: (N, J, 2) numbers, finite.
        true: (N, J, 2) numbers in the same unit; NaN in either coordinate for a joint without annotation.
        skeleton: names and sticks. Default: `LSP_SKELETON`.
        threshold: share of the stick's length, > 0. Default .5, as in the paper.
        strict: both ends (default, as in the paper), or their mean error.
        visible: (N, J) booleans, False for a joint that is not to be judged; None (default): all are.

    Returns:
        `PoseScore`. A stick is left out of a sample where one of its joints is missing (NaN or not visible)
        or its true length is 0; `excluded` says how often, for each reason. Without any sample all is NaN.

    Raises:
        TypeError: if something is no array of numbers, or `visible` not of booleans.
        ValueError: for shapes that do not fit, predictions that are not finite, infinite true joints, a
            threshold that is not positive.

    Source: Bautista et al. (CVPR 2017), section 4.1.2 and Tables 2 and 3 (PCP@0.5).
    Differs from the paper: it does not say which PCP is meant; the strict one reproduces its row of ground
        truth on Leeds Sports. Sticks of length 0 (there are two in the test set) are left out.

    Example:
        >>> true = np.array([[[0.0, 0.0], [0.0, 2.0]]])
        >>> from benchmarks.measures.skeletons import Stick
        >>> arm = Skeleton(("a", "b"), (Stick("arm", ("a",), ("b",)),), (0, 1), ("a", "b"))
        >>> pcp(true + [1.0, 0.0], true, arm).total, pcp(true + [1.1, 0.0], true, arm).total
        (100.0, 0.0)
    """
    predicted, true, present = _check_joints(predicted, true, visible, skeleton)
    threshold = as_real(threshold, "threshold", low=0, open_low=True)
    shape = (len(true), len(skeleton.sticks))
    right, there, long = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
    for s, stick in enumerate(skeleton.sticks):
        ends = [skeleton.indices(names) for names in (stick.start, stick.end)]
        there[:, s] = present[:, ends[0] + ends[1]].all(axis=1)
        start, end = (true[:, joints].mean(axis=1) for joints in ends)  # (N, 2)
        errors = np.stack(
            [
                _lengths(predicted[:, ends[0]].mean(axis=1) - start),
                _lengths(predicted[:, ends[1]].mean(axis=1) - end),
            ]
        )  # (2, N)
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
    visible: ArrayLike | torch.Tensor | None = None,
) -> PoseScore:
    r"""Percentage of correct keypoints: how many joints lie where they should, judged by the head's size.

    Joint j of sample n is right if |x'_nj - x_nj| <= threshold h_n. Left and right are averaged into one row;
    the total is the plain mean of the rows, ten of them for MPII: ankle, knee, hip, pelvis, thorax, upper
    neck, head top, wrist, elbow, shoulder.

    Args:
        predicted: (N, J, 2) numbers, finite.
        true: (N, J, 2) numbers in the same unit; NaN for a joint without annotation.
        head_size: (N,) numbers in the same unit, from 0, NaN where unknown: see `head_neck_distance` (the
            paper's) and `head_box_size` (MPII's own).
        threshold: share of the head's size, > 0. Default .5, as in the paper.
        skeleton: names and which of them are left and right. Default: `MPII_SKELETON`.
        visible: (N, J) booleans, False for a joint that is not to be judged; None (default): all are.

    Returns:
        `PoseScore`, `parts` by row. Joints without annotation are left out, and so are all joints of a sample
        whose head is of size 0 or unknown; `excluded` says how often, for each reason.

    Raises:
        TypeError: if something is no array of numbers, or `visible` not of booleans.
        ValueError: for shapes that do not fit, predictions that are not finite, infinite true joints, head
            sizes that are negative or infinite, a threshold that is not positive.

    Source: Bautista et al. (CVPR 2017), section 4.1.3 and Table 4 (PCKh@0.5). That the total is the plain
        mean of the ten rows, thorax and pelvis among them, follows from the table: 72.66 for 72.7.
    Differs from the paper: in nothing known. MPII's own total differs from both: it leaves out thorax and
        pelvis, and weighs each joint by how often it is annotated.

    Example:
        >>> true = np.zeros((1, 16, 2))
        >>> wrong = true.copy()
        >>> wrong[0, 0] = [0.0, 6.0]  # the right ankle, by more than half a head
        >>> score = pckh(wrong, true, [10.0])
        >>> score.parts["ankle"], score.total
        (50.0, 95.0)
    """
    predicted, true, present = _check_joints(predicted, true, visible, skeleton)
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
    """Head size as the distance from the neck to the top of the head.

    Args:
        true: (N, J, 2) numbers, NaN for a joint without annotation.
        skeleton: where neck and head top stand. Default: `MPII_SKELETON`.

    Returns:
        (N,) float64 in the unit of `true`, NaN where one of the two is missing.

    Raises:
        TypeError, ValueError: as `pckh`.

    Source: Bautista et al. (CVPR 2017), Table 4, as measured by their published code.
    Differs from the paper: in nothing known; MPII's own measure takes `head_box_size`.

    Example:
        >>> joints = np.zeros((1, 16, 2))
        >>> joints[0, 9] = [3.0, -4.0]
        >>> head_neck_distance(joints)
        array([5.])
    """
    true = _as_joints(true, "true", skeleton)
    neck, head = skeleton.indices(skeleton.neck_and_head)
    return _lengths(true[:, head] - true[:, neck])


def head_box_size(boxes: ArrayLike | torch.Tensor) -> NDArray[np.float64]:
    """Head size as MPII measures it: 0.6 of the diagonal of the annotated head box.

    Args:
        boxes: (N, 4) numbers, x1, y1, x2, y2 with x1 <= x2 and y1 <= y2; NaN where there is no box.

    Returns:
        (N,) float64 in the unit of the boxes, NaN where there is no box.

    Raises:
        TypeError: if they are no numbers.
        ValueError: for another shape, infinite corners, or corners in the other order.

    Source: the official PCKh of MPII Human Pose.
    Differs from the paper: it takes `head_neck_distance`.

    Example:
        >>> head_box_size([[0.0, 0.0, 30.0, 40.0]])
        array([30.])
    """
    corners = as_numbers(boxes, "boxes")
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise ValueError(f"boxes must have shape (N, 4) of x1, y1, x2, y2, got {corners.shape}")
    sides = corners[:, 2:] - corners[:, :2]
    if np.isinf(corners).any() or (sides < 0).any():
        raise ValueError("boxes must be finite with x1 <= x2 and y1 <= y2: are they x, y, width, height?")
    return HEAD_BOX_SHARE * _lengths(sides)


def _score(
    right: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    columns: dict[str, Any],
    excluded: dict[str, int],
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
    predicted: Any, true: Any, visible: Any, skeleton: Skeleton
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
    present = ~np.isnan(true).any(axis=2)
    if visible is not None:
        flags = np.asarray(visible.detach().cpu() if isinstance(visible, torch.Tensor) else visible)
        if flags.dtype != np.bool_:
            raise TypeError(f"visible must be booleans, got dtype {flags.dtype}: give flags == 1, say")
        if flags.shape != present.shape:
            raise ValueError(f"visible must have shape {present.shape}, a flag a joint, got {flags.shape}")
        present &= flags
    return predicted, true, present


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
