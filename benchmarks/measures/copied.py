"""Zero-shot poses (Table 2): every image takes the pose of its nearest neighbor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from benchmarks.measures.skeletons import LSP_SKELETON, Skeleton, mirror_joints
from pml_posets._validation import as_count, as_numbers, unit_rows
from pml_posets.neighbors.nearest import search


@dataclass(frozen=True, eq=False)
class CopiedPoses:
    """Poses of the nearest samples of a gallery of G samples, and of their mirror images.

    Attributes:
        indices: (N, k) int64, nearest first; i < G is sample i, G + i the mirror image of sample i.
        flips: (N, k) bool, whether it is a mirror image.
        joints: (N, k, J, 2), the poses, mirrored where the sample is.
    """

    indices: NDArray[np.int64]
    flips: NDArray[np.bool_]
    joints: NDArray[Any]


def copy_poses(
    query_features: ArrayLike | torch.Tensor,
    gallery_features: ArrayLike | torch.Tensor,
    gallery_joints: ArrayLike | torch.Tensor,
    mirrored_features: ArrayLike | torch.Tensor | None = None,
    skeleton: Skeleton = LSP_SKELETON,
    k: int = 1,
) -> CopiedPoses:
    """Give every query the poses of its nearest gallery images by cosine, mirror images with mirrored joints.

    Args:
        query_features: (N, D) numbers, of the images without a pose.
        gallery_features: (G, D) numbers.
        gallery_joints: (G, J, 2) in shares of the crop; further columns are copied with them.
        mirrored_features: (G, D), of the mirrored gallery images. Default None: no mirror images. The paper
            has them.
        skeleton: which joints are left and right. Default: `LSP_SKELETON`.
        k: how many poses a query gets, at most as many as the gallery holds. Default 1, as in the paper.

    Returns:
        `CopiedPoses`. Of equally near ones the lower index comes first. The cosine with a row of zeros is 0.

    Raises:
        TypeError, ValueError: for features that are not finite numbers, shapes that do not match, k too
            large.

    Source: Bautista et al. (CVPR 2017), section 4.1.2 and Table 2.
    """
    gallery = unit_rows(gallery_features, "gallery_features")
    num_samples = len(gallery)
    joints = as_numbers(gallery_joints, "gallery_joints")
    if joints.shape[:2] != (num_samples, len(skeleton.joints)) or joints.ndim != 3 or joints.shape[2] < 2:
        raise ValueError(
            f"gallery_joints must have shape ({num_samples}, {len(skeleton.joints)}, 2) to match "
            f"gallery_features {gallery.shape} and the skeleton, got {joints.shape}"
        )
    if mirrored_features is not None:
        mirrored = unit_rows(mirrored_features, "mirrored_features")
        if mirrored.shape != gallery.shape:
            raise ValueError(
                f"mirrored_features must have the shape {gallery.shape} of gallery_features, "
                f"got {mirrored.shape}"
            )
        gallery = np.concatenate([gallery, mirrored])  # (2G, D)
        joints = np.concatenate([joints, mirror_joints(joints, skeleton)])
    queries = unit_rows(query_features, "query_features")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query_features must have {gallery.shape[1]} columns like gallery_features, got {queries.shape}"
        )
    k = as_count(k, "k")
    if k > len(gallery):
        raise ValueError(f"k must be at most {len(gallery)}, what the gallery holds, got {k}")
    blank = ~gallery.any(axis=1)
    if blank.any():  # an extra column puts them at a right angle to every query
        gallery = np.column_stack([gallery, blank]).astype(np.float32)
        queries = np.column_stack([queries, np.zeros(len(queries), np.float32)])
    indices = search(gallery, k, query_features=queries).indices
    return CopiedPoses(indices, indices >= num_samples, joints[indices])
