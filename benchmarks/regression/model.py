"""DeepPose, stage 1: a network that regresses joints, its loss, and its augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from pml_posets._random import preserved_randomness, seed_everything


class PoseRegressor(nn.Module):
    """A network with one more layer, which regresses each joint j: x_j = W relu(fc7) + b in R^2.

    Of another network than AlexNet the embedding stands for fc7.

    Joints are person-centric: shares of the person's crop about its middle, x and y in [-0.5, 0.5] inside.

    Args:
        models: {"trunk", "embedder"} of `networks.build`.
        num_joints: J.
        seed: of the last layer's weights, normal with deviation 0.01.
        pose: (J, 2) the last layer's biases b: a pose to begin from, say the mean of the labeled ones. None
            (default): 0, the middle.

    Shapes: (B, 3, S, S) normalized images -> (B, J, 2) float32, not clipped.

    Source: DeepPose, stage 1 (Toshev and Szegedy, CVPR 2014), as section 4.1.2 of the posets paper uses it.
    Differs from the paper: see `alexnet`; the deviation is that of the authors' public code, which begins
        from the middle.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        num_joints: int,
        seed: int,
        pose: npt.NDArray[Any] | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.embedder = models["trunk"], models["embedder"]
        width = [part for part in self.embedder.modules() if isinstance(part, nn.Linear)][-1].out_features
        with preserved_randomness(accelerators=False):
            seed_everything(seed, accelerators=False)
            self.head = nn.Linear(width, 2 * num_joints)
            nn.init.normal_(self.head.weight, std=0.01)
        bias = np.zeros(2 * num_joints) if pose is None else pose.reshape(-1)
        self.head.bias.data.copy_(torch.from_numpy(bias))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) -> (B, J, 2)."""
        features = self.embedder(self.trunk(images)).relu()
        with torch.autocast(features.device.type, enabled=False):  # positions need more than eight bits
            return self.head(features.float()).unflatten(1, (-1, 2))


@dataclass(frozen=True)
class PoseAugmentation:
    """Mirrors, magnifies and shifts the images of a batch, each at random, and their joints with them.

    A joint u about the image's middle, in [-0.5, 0.5], goes to z F u + t: F mirrors x in half of the images
    (left and right joints then change places), z is drawn from `scale` and t from `shift`. What comes in from
    outside is 0, the mean color. Joints that leave the image count as missing. Randomness comes from torch's
    global generator of the CPU, whatever the device.

    Args:
        mirror: J indices, `Skeleton.mirror`.
        scale: range of z, both above 0. Default (0.8, 1.1).
        shift: largest |t| in x and y, as a share of the image. Default 0.05.
        flip: part of the images that are mirrored. Default 0.5.

    Source: DeepPose mirrors and shifts; so does the posets authors' public code, which also scales.
    """

    mirror: tuple[int, ...]
    scale: tuple[float, float] = (0.8, 1.1)
    shift: float = 0.05
    flip: float = 0.5

    def __call__(
        self, images: torch.Tensor, joints: torch.Tensor, visible: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Move (B, 3, S, S) normalized images, (B, J, 2) joints about the middle, (B, J) visibility."""
        count, device = len(images), images.device
        if count == 0:
            return images, joints, visible
        flipped = torch.rand(count) < self.flip
        zoom = torch.empty(count).uniform_(*self.scale)
        shift = torch.empty(count, 2).uniform_(-self.shift, self.shift)
        sign = torch.where(flipped, -1.0, 1.0)
        # The grid asks where a pixel of the result comes from; it runs from -1 to 1 where joints run from
        # -0.5 to 0.5.
        back = torch.zeros(count, 2, 3)
        back[:, 0, 0], back[:, 1, 1] = sign / zoom, 1 / zoom
        back[:, 0, 2], back[:, 1, 2] = -2 * shift[:, 0] * sign / zoom, -2 * shift[:, 1] / zoom
        grid = F.affine_grid(back.to(device), list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, align_corners=False)
        swapped, factor = flipped.to(device), torch.stack([sign * zoom, zoom], 1).to(device)
        order = list(self.mirror)
        joints = torch.where(swapped[:, None, None], joints[:, order], joints)
        visible = torch.where(swapped[:, None], visible[:, order], visible)
        joints = joints * factor[:, None] + shift.to(device)[:, None]  # (B, J, 2)
        return images, joints, visible & (joints.abs() <= 0.5).all(dim=2)


def pose_loss(predicted: torch.Tensor, joints: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of joints: L = mean_i 1/|V_i| sum_{j in V_i} |x_ij - y_ij|^2.

    V_i are the visible joints of person i; people without any are left out of the mean. The loss is 0, with a
    gradient of 0, if nobody has a visible joint.

    Args:
        predicted: (B, J, 2) x.
        joints: (B, J, 2) y; anything finite where not visible.
        visible: (B, J) bool.

    Source: section 4.1.2 (DeepPose's L2 loss); the means are those of the authors' public code.
    """
    squared = (predicted - joints).square().sum(dim=2).masked_fill(~visible, 0)  # (B, J)
    seen = visible.sum(dim=1)
    return (squared.sum(dim=1) / seen.clamp(min=1)).sum() / (seen > 0).sum().clamp(min=1)
