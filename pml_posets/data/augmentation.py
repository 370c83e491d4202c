"""Augmentation of whole batches, on the device they are on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .._validation import as_real, check_scale, check_shape
from .images import normalized, per_color

__all__ = ["BatchAugmentation"]

_RENAMED = {"colour": "color", "grey": "gray"}  # arguments of version 0.1.0


class BatchAugmentation(nn.Module):
    """Normalizes a batch of images and, in training mode, moves and recolors each of them at random.

    Put it in front of a trunk: `nn.Sequential(BatchAugmentation(), trunk)`. In evaluation mode the images are
    only normalized. Each amount is drawn uniformly from its range, for each image separately. An image is
    sheared, rotated and magnified about its center; then the center is shifted. Pixels from outside of the
    image are 0 after normalization, the mean color.

    Args:
        scale: range of the magnification, both above 0. Default (1.0, 1.41).
        rotation: largest angle, to either side, degrees in 0..180. Default 10.
        shear: largest lean of upright lines, to either side, degrees in 0..89. Default 4.
        translation: largest shift of the image's center, to any side, as part of the image's width and
            height, in 0..1. Default 15 / 227.
        brightness: how far the image may fade towards the mean color or away from it, as a factor off 1, in
            0..1. Default 0: off.
        color: standard deviation of a shift of each channel, in units of `std`, from 0. Default 0: off.
        gray: part of the images that lose their color, in 0..1. Default 0: off.
        mean, std: of the three channels, for pixels in [0, 1]. Default: those of ImageNet.

    Shapes: (B, 3, H, W), uint8, or floating point in [0, 1] -> (B, 3, H, W) float32. Randomness
    comes from torch's global generator of the CPU, whatever the device: `torch.manual_seed` fixes it.

    Raises:
        ValueError: for a range out of bounds; a batch that is not (B, 3, H, W), or floats outside of [0, 1],
            such as bytes that a trainer's dtype=torch.float32 has cast (an overshoot of .25 passes).
        TypeError: for a batch that is neither uint8 nor floating point.

    Source: section 4.1.1 of the paper; scale, rotation, shear and translation: the authors' public code.
    Differs from the paper: mean color and deviation, no mean image; brightness, color and gray are additions.

    Example:
        >>> augment = BatchAugmentation().eval()
        >>> augment(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape
        torch.Size([2, 3, 8, 8])
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        scale: tuple[float, float] = (1.0, 1.41),
        rotation: float = 10.0,
        shear: float = 4.0,
        translation: float = 15 / 227,
        brightness: float = 0.0,
        color: float = 0.0,
        gray: float = 0.0,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        **old: float,
    ) -> None:
        super().__init__()
        for name in old:
            if name not in _RENAMED:
                raise TypeError(f"BatchAugmentation has no argument {name!r}")
            warnings.warn(f"{name}= is now {_RENAMED[name]}=", DeprecationWarning, stacklevel=2)
        color, gray = old.get("colour", color), old.get("grey", gray)
        check_scale(scale, "(1.0, 1.41)")
        as_real(rotation, "rotation", low=0, high=180)
        as_real(shear, "shear", low=0, high=89)
        as_real(color, "color", low=0)
        for name, value in (("translation", translation), ("brightness", brightness), ("gray", gray)):
            as_real(value, name, low=0, high=1)
        self.scale, self.rotation, self.shear, self.translation = scale, rotation, shear, translation
        self.brightness, self.color, self.gray = brightness, color, gray
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, per_color(values, name, positive=name == "std"), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize, and in training mode augment: (B, 3, H, W) -> (B, 3, H, W) float32."""
        check_shape(images, "images", ("B", 3, "H", "W"), advice=": convert them to RGB")
        if images.dtype == torch.bool:
            raise TypeError("images must be uint8 in 0..255 or floating point in [0, 1], got torch.bool")
        images = normalized(images, self.mean, self.std)
        if not self.training or len(images) == 0:
            return images
        return self._recolor(self._move(images))

    def extra_repr(self) -> str:
        """Every setting, so that what is named after the `repr` of a network changes with them."""
        names = ("scale", "rotation", "shear", "translation", "brightness", "color", "gray")
        settings = [f"{name}={getattr(self, name)}" for name in names]
        channels = [f"{name}={getattr(self, name).flatten().tolist()}" for name in ("mean", "std")]
        return ", ".join(settings + channels)

    def _move(self, images: torch.Tensor) -> torch.Tensor:
        count, _, height, width = images.shape
        zoom = self._uniform(count, *self.scale).reciprocal()  # of the sampling grid
        angle = self._uniform(count, -self.rotation, self.rotation).mul(math.pi / 180)
        lean = self._uniform(count, -self.shear, self.shear).mul(math.pi / 180).tan()
        shift = self._uniform(2 * count, -2 * self.translation, 2 * self.translation).view(count, 2, 1)
        # The grid asks where a pixel of the result comes from: shift, magnification, rotation, shear undone.
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        back = torch.stack([cos + lean * sin, sin - lean * cos, -sin, cos], dim=1).view(count, 2, 2)
        back[:, 0, 1] *= height / width  # the grid runs from -1 to 1 on both sides
        back[:, 1, 0] *= width / height
        matrix = torch.cat([back, -back @ shift], dim=2).to(images.device)  # (B, 2, 3)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)

    def _recolor(self, images: torch.Tensor) -> torch.Tensor:
        count = len(images)
        if self.brightness:
            factor = self._uniform(count, 1 - self.brightness, 1 + self.brightness)
            images = images * factor.view(-1, 1, 1, 1).to(images.device)
        if self.color:
            images = images + (torch.randn(count, 3, 1, 1) * self.color).to(images.device)
        if self.gray:
            chosen = (torch.rand(count) < self.gray).view(-1, 1, 1, 1).to(images.device)
            without = (images * self.std + self.mean).mean(dim=1, keepdim=True)  # as pixels
            images = torch.where(chosen, (without - self.mean) / self.std, images)
        return images

    @staticmethod
    def _uniform(count: int, low: float, high: float) -> torch.Tensor:
        return torch.empty(count).uniform_(low, high)
