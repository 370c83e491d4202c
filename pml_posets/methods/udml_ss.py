"""The auxiliary rotation loss of UDML-SS: a network must predict by how much an image was turned.

"Unsupervised Deep Metric Learning via Auxiliary Rotation Loss" (2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .._batch_checks import out_of_range
from .._validation import as_count, check_module, check_shape
from ._networks import at_least_float32, check_images, no_images, pooled_features

__all__ = ["RotationHead", "RotationObjective", "rotate_images", "rotation_cross_entropy"]

_ANGLES = 4  # 0, 90, 180, 270 degrees


def rotate_images(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The images at 0, 90, 180 and 270 degrees, counter-clockwise, and by how much each was turned.

    Args:
        images: (B, C, S, S), square, any dtype.

    Returns:
        (4B, C, S, S), all at 0 degrees first, then all at 90, ...; and (4B,) int64, the angle / 90 degrees.

    Raises:
        TypeError, ValueError: for what is no tensor of square images.

    Example:
        >>> turned, angles = rotate_images(torch.tensor([[[[1, 2], [3, 4]]]]))
        >>> turned[:, 0].tolist()
        [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
        >>> angles.tolist()
        [0, 1, 2, 3]
    """
    check_images(images)
    if images.shape[2] != images.shape[3]:
        found = f"{images.shape[2]} x {images.shape[3]} pixels: crop or resize them"
        raise ValueError(f"images must be square to be turned by 90 degrees, got {found}")
    turned = torch.cat([images.rot90(k, dims=(2, 3)) for k in range(_ANGLES)])  # (4B, C, S, S)
    angles = torch.arange(_ANGLES, device=images.device).repeat_interleave(len(images))  # (4B,)
    return turned, angles


def rotation_cross_entropy(logits: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of the angles.

        L_rot = -1/N sum_i log softmax(logits_i)[angle_i]

    Args:
        logits: (N, 4) floating point; half precision and autocast are computed in float32.
        angles: (N,) integers in 0..3, the angle / 90 degrees.

    Returns:
        A scalar of at least 32 bits; without rows 0, with a gradient path.

    Raises:
        TypeError, ValueError: for other shapes or kinds, or angles out of range.

    Example:
        >>> round(rotation_cross_entropy(torch.zeros(8, 4), torch.arange(8) % 4).item(), 4)  # log 4
        1.3863
    """
    if logits.ndim != 2 or logits.shape[1] != _ANGLES or not logits.is_floating_point():
        found = f"{logits.dtype} {tuple(logits.shape)}"
        raise ValueError(f"logits must be floating point of shape (N, 4), one column an angle, got {found}")
    if angles.is_floating_point() or angles.is_complex():
        raise TypeError(f"angles must be integers in 0..{_ANGLES - 1}, got {angles.dtype}")
    check_shape(angles, "angles", (len(logits),))
    with torch.autocast(logits.device.type, enabled=False):
        logits = at_least_float32(logits)
        if not len(logits):
            return logits.sum()
        if bad := out_of_range(angles, _ANGLES):
            raise ValueError(f"angles must be in 0..3 (in units of 90 degrees), got {bad[0]} to {bad[1]}")
        return F.cross_entropy(logits, angles.long())


class RotationHead(nn.Module):
    """Linear, ReLU, Linear: pooled features (N, D) to the logits of the four angles, (N, 4).

    Args:
        in_dim: D, the width of the trunk's pooled features (1024 in the paper's GoogLeNet).
        hidden_dim: width of the hidden layer. Default 512, the published value.

    Raises:
        TypeError, ValueError: for a width that is not a count, or features of another width.

    Differs from the paper: the published code has a ReLU on the logits too, which keeps them from falling
    below 0; here they have none.

    Example:
        >>> RotationHead(16)(torch.zeros(8, 16)).shape
        torch.Size([8, 4])
    """

    def __init__(self, in_dim: int, hidden_dim: int = 512) -> None:
        super().__init__()
        self.hidden = nn.Linear(as_count(in_dim, "in_dim"), as_count(hidden_dim, "hidden_dim"))
        self.logits = nn.Linear(hidden_dim, _ANGLES)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D) pooled features to (N, 4) logits."""
        check_shape(features, "features", ("N", self.hidden.in_features), ", the head's in_dim")
        return self.logits(F.relu(self.hidden(features)))


class RotationObjective(nn.Module):
    """The rotation loss of a trunk on some images of the batch, by a forward pass of its own.

    The first `num_images` images are turned by four angles, then transformed, and the head must predict the
    angles from the trunk's pooled features. The loss is unweighted: the paper adds it with the weight 0.1.

    Called as objective(images, indices, models) with images (B, C, S, S), square, and models {"trunk": ...};
    the embedder is not used. Returns a scalar of at least 32 bits; without images 0, with a gradient path.

    Args:
        head: (N, D) to (N, 4) logits, `RotationHead`; its weights are the objective's parameters.
        num_images: how many images are taken, all if there are fewer. Default 16, the published value.
        transform: applied to the turned images (4n, C, S, S), such as a random crop. Default None: none.
        pool: the trunk's output to (4n, D). Default: mean over the map of a 4-D output.

    Raises:
        TypeError, ValueError: for images that are not square, shapes that do not match, another head.

    Differs from the paper: crop and augmentation are drawn for each of the four angles of an image separately
    (whether theirs are is not known).

    Example:
        >>> trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> objective = RotationObjective(RotationHead(8), num_images=2)
        >>> objective(torch.rand(6, 3, 12, 12), torch.arange(6), {"trunk": trunk}).ndim
        0
    """

    def __init__(
        self,
        head: nn.Module,
        num_images: int = 16,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
        pool: Callable[[torch.Tensor], torch.Tensor] = pooled_features,
    ) -> None:
        super().__init__()
        check_module(head, "head", advice=": use RotationHead(D)")
        self.head = head
        self.num_images = as_count(num_images, "num_images")
        self.transform = transform
        self.pool = pool

    def forward(self, images: torch.Tensor, indices: torch.Tensor, models: Mapping[str, Any]) -> torch.Tensor:
        """The loss of the first images of the batch; the indices are not looked at."""
        check_images(images, indices, models)
        turned, angles = rotate_images(images[: self.num_images])  # (4n, C, S, S), (4n,)
        if not len(turned):
            return no_images(self, images)
        if self.transform is not None:
            turned = self.transform(turned)
        features = self.pool(models["trunk"](turned))  # (4n, D)
        return rotation_cross_entropy(self.head(features), angles)

    def extra_repr(self) -> str:
        return f"num_images={self.num_images}"
