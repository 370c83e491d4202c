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
from ..data.augmentation import BatchAugmentation

__all__ = [
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


def check_floats(x: Any, name: str, shape: str, num_dims: int = 2) -> None:
    """Raise unless `x` is a floating point tensor of `num_dims` dimensions, which `shape` names."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating point tensor {shape}, got {found}")
    if x.ndim != num_dims:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")


def check_images(images: Any, indices: Any = None, models: Any = None) -> None:
    """Check the arguments of an objective.

    Args:
        images: (B, C, H, W).
        indices: None, or (B,) integers, one an image.
        models: None, or a mapping with a module "trunk".

    Raises:
        TypeError: images that are not a tensor, indices that are not integers, models without a trunk.
        ValueError: shapes that do not match.

    Example:
        >>> check_images(torch.zeros(4, 3, 8, 8), torch.arange(3))
        Traceback (most recent call last):
        ValueError: dataset indices must have shape (4,), one a sample, got (3,)
    """
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"images must be a torch.Tensor (B, C, H, W), got {type(images).__name__}")
    if images.ndim != 4:
        raise ValueError(f"images must have shape (B, C, H, W), got {tuple(images.shape)}: stack single ones")
    if indices is not None:
        as_indices(indices, None, len(images))
    if models is not None and (
        not isinstance(models, Mapping) or not isinstance(models.get("trunk"), nn.Module)
    ):
        raise TypeError('models must be a mapping with a module "trunk", and "embedder" where it is used')


def no_images(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The loss of an empty batch: 0, with a gradient path to the module's weights."""
    zero = torch.zeros((), device=images.device)
    return sum((p.flatten()[:0].sum().float() for p in module.parameters()), zero)


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
        ValueError: if the submodule does not exist, is not used, or does not return maps.

    Example:
        >>> trunk = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> conv_maps(trunk, torch.zeros(2, 3, 8, 8), layer="0").shape
        torch.Size([2, 5, 6, 6])
    """
    outputs: list[Any] = []
    if layer is None:
        outputs.append(trunk(images))
    else:
        named = dict(trunk.named_modules())
        if layer not in named:
            raise ValueError(
                f"the trunk has no submodule {layer!r}: take one of {', '.join(filter(None, named))}"
            )
        handle = named[layer].register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            trunk(images)
        finally:
            handle.remove()
    what = "the trunk's output" if layer is None else f"the output of {layer!r}"
    if not outputs:
        raise ValueError(f"{layer!r} was not called in the trunk's forward pass: name another layer")
    maps = outputs[-1]
    if not isinstance(maps, torch.Tensor) or maps.ndim != 4:
        kind = tuple(maps.shape) if isinstance(maps, torch.Tensor) else type(maps).__name__
        raise ValueError(f"{what} must be maps (B, D, H, W), got {kind}: name its last convolution by layer=")
    return maps


@contextmanager
def without_augmentation(
    module: nn.Module, kinds: tuple[type[nn.Module], ...] = (BatchAugmentation,)
) -> Iterator[None]:
    """Switch the augmenting submodules to evaluation mode; the rest of the network keeps its mode.

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
