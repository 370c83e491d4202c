"""Transformed attention consistency (TAC) of TAC-CCL, reconstructed from the abstract of its paper.

"Unsupervised Deep Metric Learning with Transformed Attention Consistency and Contrastive Clustering Loss"
(ECCV 2020). The abstract has attention maps of a pair of images that are the same before and after a
transform. The form of the attention, the squared difference, its mask, the stopped gradient, the transforms
and how pairs are drawn are ours. The other half of the system is `ContrastiveClusteringLoss`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .._batch_checks import as_indices
from .._validation import as_real, check_scale, check_shape
from ..data.augmentation import BatchAugmentation
from ..posets import Posets
from ._networks import at_least_float32, check_images, conv_maps, pooled_features, without_augmentation

__all__ = ["AttentionConsistencyObjective", "attention_consistency_loss", "cross_attention", "random_affines"]

_EPS = 1e-6  # shortest feature vector that is brought to unit length


def cross_attention(maps: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Where the maps of one image resemble the pooled feature of another.

        M_ab(u) = relu(cos(F_a(u), g_b)) / sum_v relu(cos(F_a(v), g_b))

    Args:
        maps: F_a, (B, C, H, W) floating point; half precision and autocast are computed in float32.
        features: g_b, (B, C), of any length.

    Returns:
        (B, H, W) of at least 32 bits, not negative; each map sums to 1, or is 0 where nothing resembles.

    Raises:
        ValueError: for shapes that do not match.

    Example:
        >>> maps = torch.tensor([[[[1.0, 0.0], [3.0, -2.0]], [[0.0, 1.0], [4.0, 0.0]]]])
        >>> cross_attention(maps, torch.tensor([[1.0, 0.0]])).round(decimals=3).tolist()  # 1, 0, 0.6, -1
        [[[0.625, 0.0], [0.375, 0.0]]]
    """
    if maps.ndim != 4 or features.shape != maps.shape[:2]:
        shapes = f"{tuple(maps.shape)} and {tuple(features.shape)}"
        raise ValueError(f"maps (B, C, H, W) and features (B, C) must match, got {shapes}")
    with torch.autocast(maps.device.type, enabled=False):
        cells = F.normalize(at_least_float32(maps), dim=1, eps=_EPS)  # (B, C, H, W)
        towards = F.normalize(at_least_float32(features), dim=1, eps=_EPS)  # (B, C)
        attention = F.relu(torch.einsum("bchw,bc->bhw", cells, towards))
        return attention / attention.sum(dim=(1, 2), keepdim=True).clamp_min(_EPS)


def attention_consistency_loss(
    maps_a: torch.Tensor,
    maps_b: torch.Tensor,
    moved_a: torch.Tensor,
    moved_b: torch.Tensor,
    theta_a: torch.Tensor,
    theta_b: torch.Tensor,
    stop_gradient: bool = True,
) -> torch.Tensor:
    """The attention between two images, moved as they are, against the attention between the moved images.

        L_TAC = 1/2 [ mean_u (T_a[M_ab](u) - M_a'b'(u))^2 + mean_u (T_b[M_ba](u) - M_b'a'(u))^2 ]

    with a' = T_a(a), b' = T_b(b), M as in `cross_attention` and g the mean of the maps. u runs over the cells
    whose origin is inside the image before it was moved; the mean over the pairs comes after that over u.
    Pairs without such a cell count as 0. As each map sums to 1, the loss is of the order 1 / (H W)^2: weigh
    it by (H W)^2 to have maps of mean 1.

    Args:
        maps_a, maps_b: F_a and F_b, (B, C, H, W), the last maps of the images of each pair.
        moved_a, moved_b: F_a' and F_b', (B, C, H, W), those of the moved images.
        theta_a, theta_b: (B, 2, 3), from a point of the moved image to its origin, as in
            `torch.nn.functional.affine_grid` with align_corners=False.
        stop_gradient: True (default): only the attention of the moved images learns.

    Returns:
        A scalar of at least 32 bits; without pairs 0, with a gradient path.

    Raises:
        ValueError: for shapes that do not match.

    Example:
        >>> maps = torch.rand(2, 4, 5, 5, 3, generator=torch.Generator().manual_seed(0)).unbind(-1)
        >>> stay = torch.eye(2, 3).expand(2, 2, 3)
        >>> attention_consistency_loss(maps[0], maps[1], maps[0], maps[1], stay, stay).item()
        0.0
    """
    _check_pairs((maps_a, maps_b, moved_a, moved_b), (theta_a, theta_b))
    if not len(maps_a):
        return torch.stack([at_least_float32(x).sum() for x in (maps_a, maps_b, moved_a, moved_b)]).sum()
    with torch.autocast(maps_a.device.type, enabled=False):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not stop_gradient):
            before = _mutual_attention(maps_a, maps_b)  # twice (B, H, W)
        after = _mutual_attention(moved_a, moved_b)
        return (_difference(before[0], after[0], theta_a) + _difference(before[1], after[1], theta_b)) / 2


def _mutual_attention(maps_a: torch.Tensor, maps_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """M_ab and M_ba, (B, H, W) each."""
    feature_a, feature_b = (pooled_features(at_least_float32(maps)) for maps in (maps_a, maps_b))  # (B, C)
    return cross_attention(maps_a, feature_b), cross_attention(maps_b, feature_a)


def _difference(before: torch.Tensor, after: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Mean over valid cells, then over pairs, of (T[before] - after)^2 for (B, H, W) maps."""
    size = [len(before), 1, *before.shape[1:]]
    grid = F.affine_grid(theta.to(before), size, align_corners=False)  # (B, H, W, 2)
    valid = (grid.detach().abs() <= 1).all(dim=3)  # (B, H, W)
    warped = F.grid_sample(before[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    squares = (warped - after).square().masked_fill(~valid, 0)
    return (squares.sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp_min(1)).mean()


def _check_pairs(maps: tuple[torch.Tensor, ...], thetas: tuple[torch.Tensor, ...]) -> None:
    like = tuple(maps[0].shape)
    for name, given in zip(("maps_a", "maps_b", "moved_a", "moved_b"), maps, strict=True):
        if given.ndim != 4 or given.shape != like or not given.is_floating_point():
            wanted, found = f"maps (B, C, H, W) like maps_a {like}", f"{given.dtype} {tuple(given.shape)}"
            raise ValueError(f"{name} must be floating point {wanted}, got {found}")
    for name, theta in zip(("theta_a", "theta_b"), thetas, strict=True):
        check_shape(theta, name, (len(maps[0]), 2, 3), ", a matrix a pair")


def random_affines(
    count: int,
    height: int,
    width: int,
    rotation: float = 20.0,
    scale: tuple[float, float] = (0.8, 1.25),
    translation: float = 0.1,
    flip: float = 0.5,
) -> torch.Tensor:
    """Random rotations, magnifications, shifts and mirrorings of images, for `affine_grid`.

    Every amount is drawn uniformly from its range, for each image, from torch's global generator of the CPU.
    An image is mirrored, rotated and magnified about its center, then shifted. Angles are right in pixels on
    images that are not square, too.

    Args:
        count: B, from 0.
        height, width: of the images, in pixels.
        rotation: largest angle, to either side, degrees in [0, 180]. Default 20.
        scale: range of the magnification, both above 0. Default (0.8, 1.25).
        translation: largest shift, to any side, as a fraction of width and height, in [0, 1]. Default 0.1.
        flip: fraction of the images that are mirrored left to right, in [0, 1]. Default 0.5.

    Returns:
        (B, 2, 3) float32 on the CPU, from the moved image to the image.

    Raises:
        ValueError: for a range out of bounds.

    Example:
        >>> mirrored = random_affines(1, 8, 8, rotation=0, scale=(1, 1), translation=0, flip=1)
        >>> torch.equal(mirrored[0], torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        True
    """
    check_scale(scale, "(0.8, 1.25)")
    rotation = as_real(rotation, "rotation", low=0, high=180)
    translation = as_real(translation, "translation", low=0, high=1)
    flip = as_real(flip, "flip", low=0, high=1)
    angle = torch.empty(count).uniform_(-rotation, rotation).mul(math.pi / 180)
    zoom = torch.empty(count).uniform_(*scale)
    shift = torch.empty(count, 2, 1).uniform_(-2 * translation, 2 * translation)
    sign = 1 - 2 * (torch.rand(count) < flip).float()
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    aspect = height / width  # the grid runs from -1 to 1 on both sides
    rows = torch.stack([sign * cos, sign * sin * aspect, -sin / aspect, cos], dim=1)
    back = rows.view(count, 2, 2)
    return torch.cat([back, -back @ shift], dim=2)  # (B, 2, 3)


class AttentionConsistencyObjective(nn.Module):
    """The attention consistency of the images of a batch, by two forward passes of the trunk.

    Each image is moved at random (`random_affines`) and paired with another of the batch: one of the same
    class, at random, where posets are bound and there is one, otherwise its nearest neighbor by the pooled
    features. The loss is the mean of `attention_consistency_loss` over the pairs, unweighted: mind its size.
    The trunk sees the images and the moved images, its own augmentation switched off (only known moves can be
    undone).

    Called as objective(images, indices, models) with images (B, C, H, W), uint8 or floating point, dataset
    indices (B,) and models {"trunk": ...}. Returns a scalar of at least 32 bits; 0 for fewer than two images,
    with a gradient path. Randomness comes from torch's global generator of the CPU.

    Args:
        layer: name of the trunk's submodule whose output is the last maps. Default None: the trunk's own.
        rotation, scale, translation, flip: of `random_affines`.
        stop_gradient: True (default): only the attention of the moved images learns.
        augmenting: classes of the trunk's submodules that augment. Default: `BatchAugmentation`.

    Raises:
        TypeError, ValueError: for a layer without maps, shapes that do not match, ranges out of bounds.

    Example:
        >>> trunk = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        >>> objective = AttentionConsistencyObjective()
        >>> loss = objective(torch.rand(4, 3, 12, 12), torch.arange(4), {"trunk": trunk})
        >>> loss.backward()
        >>> loss.item() > 0
        True
    """

    def __init__(
        self,
        layer: str | None = None,
        rotation: float = 20.0,
        scale: tuple[float, float] = (0.8, 1.25),
        translation: float = 0.1,
        flip: float = 0.5,
        stop_gradient: bool = True,
        augmenting: tuple[type[nn.Module], ...] = (BatchAugmentation,),
    ) -> None:
        super().__init__()
        self.layer, self.stop_gradient, self.augmenting = layer, stop_gradient, augmenting
        self.rotation, self.scale, self.translation, self.flip = rotation, scale, translation, flip
        random_affines(0, 1, 1, rotation, scale, translation, flip)  # checks them
        self._posets: Posets | None = None

    def bind(self, posets: Posets) -> None:
        """Pair samples of one class of these posets from now on."""
        if not isinstance(posets, Posets):
            raise TypeError(f"the objective is bound to Posets, got {type(posets).__name__}")
        self._posets = posets

    def forward(self, images: torch.Tensor, indices: torch.Tensor, models: Mapping[str, Any]) -> torch.Tensor:
        """The loss of the batch; images of the same class are looked up by the indices."""
        check_images(images, indices, models)
        count, _, height, width = images.shape
        if count < 2:
            return torch.zeros((), device=images.device, requires_grad=torch.is_grad_enabled())
        images = images if images.is_floating_point() else images.float() / 255
        pixels = at_least_float32(images)
        ranges = self.rotation, self.scale, self.translation, self.flip
        theta = random_affines(count, height, width, *ranges).to(images.device)  # (B, 2, 3)
        grid = F.affine_grid(theta.to(pixels), list(images.shape), align_corners=False)
        moved = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False).to(images.dtype)
        trunk = models["trunk"]
        with without_augmentation(trunk, self.augmenting):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stop_gradient):
                maps = conv_maps(trunk, images, self.layer)  # (B, C, H', W')
            torch.clear_autocast_cache()  # torch 2.7 keeps weights that were cast without gradients
            moved_maps = conv_maps(trunk, moved, self.layer)
        partners = self._partners(indices, maps.detach())  # (B,)
        return attention_consistency_loss(
            maps, maps[partners], moved_maps, moved_maps[partners], theta, theta[partners], self.stop_gradient
        )

    def _partners(self, indices: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """(B,) the row in the batch of each image's partner."""
        features = F.normalize(at_least_float32(pooled_features(maps)))  # (B, C)
        nearest = (features @ features.T).fill_diagonal_(-math.inf).argmax(dim=1)
        draws = torch.rand(len(indices), len(indices))  # drawn in any case: the same numbers for what follows
        if self._posets is None:
            return nearest
        rows = as_indices(indices, self._posets.num_samples)
        labels = torch.from_numpy(self._posets.labels)[rows]  # (B,)
        same = (labels[:, None] == labels) & (labels >= 0)[:, None]
        draws = draws.masked_fill(~same.fill_diagonal_(False), -1)
        best, partners = draws.max(dim=1)
        return torch.where(best >= 0, partners, nearest.cpu()).to(nearest.device)

    def extra_repr(self) -> str:
        names = ("layer", "rotation", "scale", "translation", "flip", "stop_gradient")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
