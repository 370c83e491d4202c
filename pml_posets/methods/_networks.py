"""What the objectives share: pooled features, convolutional maps, augmentation switched off.

An objective is a module called as objective(images, indices, models) -> scalar once an iteration, with images
(B, C, H, W), dataset indices (B,) and models {"trunk": ..., "embedder": ...}. A trunk may augment (one that
begins with `pml_posets.BatchAugmentation` does): each call then sees a new view of the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .._batch_checks import as_indices
from .._networks import hooked, submodules
from .._validation import check_shape
from ..data.augmentation import BatchAugmentation

__all__ = [  # of the old `losses.passes`
    "at_least_float32",
    "check_floats",
    "check_images",
    "conv_maps",
    "no_images",
    "pooled_features",
    "without_augmentation",
]


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision to float32; anything wider stays."""
    return x if x.dtype.itemsize >= 4 else x.float()


def check_floats(x: Any, name: str, *shape: str) -> None:
    """Raise unless `x` is a floating point tensor of this shape, in letters."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating point tensor ({', '.join(shape)}), got {found}")
    check_shape(x, name, shape)


def check_images(images: Any, indices: Any = None, models: Any = None) -> None:
    """Check the images (B, C, H, W), indices (B,) and models of an objective; None is not looked at."""
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"images must be a torch.Tensor (B, C, H, W), got {type(images).__name__}")
    check_shape(images, "images", ("B", "C", "H", "W"), advice=": stack single ones")
    if indices is not None:
        as_indices(indices, None, len(images))
    trunk = models.get("trunk") if isinstance(models, Mapping) else None
    if models is not None and not isinstance(trunk, nn.Module):
        raise TypeError('models must be a mapping with a module "trunk", and "embedder" where it is used')


def no_images(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The loss of an empty batch: 0, with a gradient path to the module's weights."""
    zero = torch.zeros((), device=images.device)
    return sum((p.flatten()[:0].sum().float() for p in module.parameters()), zero)


def pooled_features(features: torch.Tensor) -> torch.Tensor:
    """Global average pooling of maps (B, D, H, W); features (B, D) that are pooled already stay."""
    if features.ndim == 2:
        return features
    if features.ndim != 4:
        raise ValueError(
            f"features must have shape (B, D) or (B, D, H, W), got {tuple(features.shape)}: "
            "give a pool that brings them into one of these"
        )
    return features.mean(dim=(2, 3))  # (B, D)


def conv_maps(trunk: nn.Module, images: torch.Tensor, layer: str | None = None) -> torch.Tensor:
    """The maps (B, D, H', W') of images: the output of the trunk, or of the submodule with a dotted name."""
    wanted = "layer must be a submodule of the trunk"
    source = {"": trunk} if layer is None else submodules(trunk, [layer], wanted)
    outputs: list[Any] = []
    with hooked(source, lambda name, output: outputs.append(output)):
        trunk(images)
    if not outputs:
        raise ValueError(f"{layer!r} was not called in the trunk's forward pass: name another layer")
    maps = outputs[-1]
    if not isinstance(maps, torch.Tensor) or maps.ndim != 4:
        kind = tuple(maps.shape) if isinstance(maps, torch.Tensor) else type(maps).__name__
        what = "the trunk's output" if layer is None else f"the output of {layer!r}"
        raise ValueError(f"{what} must be maps (B, D, H, W), got {kind}: name its last convolution by layer=")
    return maps


@contextmanager
def without_augmentation(
    module: nn.Module, kinds: tuple[type[nn.Module], ...] = (BatchAugmentation,)
) -> Iterator[None]:
    """Switch the submodules of these kinds to evaluation mode; the rest of the network keeps its mode."""
    augmenting = [part for part in module.modules() if isinstance(part, kinds)]
    modes = {part: part.training for whole in augmenting for part in whole.modules()}
    try:
        for part in modes:
            part.training = False
        yield
    finally:
        for part, training in modes.items():
            part.training = training
