"""What objectives with forward passes of their own share: pooled features, maps, augmentation put off.

An objective is a module called as objective(images, indices, models) -> scalar once an iteration, with images
(B, C, H, W), dataset indices (B,) and models {"trunk": ..., "embedder": ...}. A trunk may augment (one that
begins with `pml_posets.augmentation.BatchAugmentation` does): each call is then a new view of the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..data.augmentation import BatchAugmentation

__all__ = ["at_least_float32", "check_images", "conv_maps", "pooled_features", "without_augmentation"]


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision to float32; anything wider stays."""
    return x if x.dtype.itemsize >= 4 else x.float()


def check_images(images: Any, indices: Any = None, models: Any = None) -> None:
    """Raise what is wrong with the arguments of an objective, in words.

    Args:
        images: to be a tensor (B, C, H, W).
        indices: None, or to be (B,) integers, one an image.
        models: None, or to be a mapping with a module "trunk".

    Raises:
        TypeError: for something that is no tensor, indices that are no integers, models without a trunk.
        ValueError: for shapes that do not match.

    Example:
        >>> check_images(torch.zeros(4, 3, 8, 8), torch.arange(3))
        Traceback (most recent call last):
        ValueError: indices must have shape (4,), one an image, got (3,)
    """
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"images must be a torch.Tensor (B, C, H, W), got {type(images).__name__}")
    if images.ndim != 4:
        raise ValueError(f"images must have shape (B, C, H, W), got {tuple(images.shape)}: stack single ones")
    if indices is not None:
        if not isinstance(indices, torch.Tensor) or indices.is_floating_point() or indices.is_complex():
            found = indices.dtype if isinstance(indices, torch.Tensor) else type(indices).__name__
            raise TypeError(f"indices must be dataset indices, an integer tensor, got {found}")
        if indices.shape != (len(images),):
            raise ValueError(
                f"indices must have shape ({len(images)},), one an image, got {tuple(indices.shape)}"
            )
    if models is not None and (
        not isinstance(models, Mapping) or not isinstance(models.get("trunk"), nn.Module)
    ):
        raise TypeError('models must be a mapping with a module "trunk", and "embedder" where it is used')


def pooled_features(features: torch.Tensor) -> torch.Tensor:
    """Global average pooling of maps; features that are pooled already stay.

    Args:
        features: (B, D), or maps (B, D, H, W); floating point.

    Returns:
        (B, D).

    Raises:
        ValueError: for another number of dimensions.

    Example:
        >>> pooled_features(torch.tensor([[[[1.0, 3.0]]]])).tolist()
        [[2.0]]
    """
    if features.ndim == 2:
        return features
    if features.ndim != 4:
        raise ValueError(
            f"features must have shape (B, D) or (B, D, H, W), got {tuple(features.shape)}: "
            "give a pool that brings them into one of these"
        )
    return features.mean(dim=(2, 3))  # (B, D)


def conv_maps(trunk: nn.Module, images: torch.Tensor, layer: str | None = None) -> torch.Tensor:
    """The convolutional maps of images: the trunk's output, or that of one of its submodules.

    Args:
        trunk: called with the images.
        images: (B, C, H, W).
        layer: dotted name of the submodule, as in `trunk.named_modules()`. Default None: the trunk itself.

    Returns:
        (B, D, H', W'), with its gradient path.

    Raises:
        ValueError: if there is no such submodule, it is not used, or its output is no maps.

    Example:
        >>> trunk = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> conv_maps(trunk, torch.zeros(2, 3, 8, 8), layer="0").shape
        torch.Size([2, 5, 6, 6])
    """
    found: list[Any] = []
    if layer is None:
        found.append(trunk(images))
    else:
        named = dict(trunk.named_modules())
        if layer not in named:
            raise ValueError(
                f"the trunk has no submodule {layer!r}: take one of {', '.join(filter(None, named))}"
            )
        handle = named[layer].register_forward_hook(lambda module, args, output: found.append(output))
        try:
            trunk(images)
        finally:
            handle.remove()
    what = "the trunk's output" if layer is None else f"the output of {layer!r}"
    if not found:
        raise ValueError(f"{layer!r} was not called in the trunk's forward pass: name another layer")
    maps = found[-1]
    if not isinstance(maps, torch.Tensor) or maps.ndim != 4:
        kind = tuple(maps.shape) if isinstance(maps, torch.Tensor) else type(maps).__name__
        raise ValueError(f"{what} must be maps (B, D, H, W), got {kind}: name its last convolution by layer=")
    return maps


@contextmanager
def without_augmentation(
    module: nn.Module, kinds: tuple[type[nn.Module], ...] = (BatchAugmentation,)
) -> Iterator[None]:
    """Put the augmenting submodules into evaluation mode meanwhile; the rest of the network stays as it is.

    Args:
        module: the network.
        kinds: the classes of submodules that augment. Default: `BatchAugmentation`.

    Example:
        >>> trunk = nn.Sequential(BatchAugmentation(), nn.Flatten())
        >>> with without_augmentation(trunk):
        ...     print(trunk[0].training, trunk.training)
        False True
        >>> trunk[0].training
        True
    """
    modes = [
        (part, part.training)
        for augmenting in module.modules()
        if isinstance(augmenting, kinds)
        for part in augmenting.modules()
    ]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training
