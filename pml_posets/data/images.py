"""What the pixels of an image are: the one place that turns files, PIL images, arrays and tensors into them.

Pixels are 8-bit gray or RGB, upright, without alpha. What cannot be converted without a guess is refused.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._validation import as_real

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "UnreadableImageError",
    "as_image",
    "check_channels_first",
    "check_pixels",
    "image_of",
    "mirror",
    "needs_floats",
    "normalized",
    "per_channel",
    "read_image",
    "resized",
    "scale_pixels",
    "upright",
]

VERSION = 2
"""Of the rules below: caches made under other rules are stale."""

_OVERSHOOT = 0.25  # beyond [0, 1]: bicubic resizing of floats does that
_CHANNELS = (1, 3, 4)
_ABOUT_DTYPES = re.compile(r"[Bb]yte|unsigned char|dtype|UInt16|Bool|Char|Long|Int\b|[Dd]ouble|Half|BFloat16")


class UnreadableImageError(OSError):
    """An image file that is missing, truncated or no image; the message names it."""


def read_image(path: str | os.PathLike[str]) -> Image:
    """The image in a file: upright, RGB, 8 bits a channel; an UnreadableImageError if there is none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return as_image(image, "it").convert("RGB")
    except Exception as error:  # decoders raise anything: SyntaxError, struct.error, EOFError, ...
        raise UnreadableImageError(f"cannot read the image {path}: {error}") from error


def as_image(item: Any, name: str = "image") -> Image:
    """Whatever a dataset yields, as an upright 8-bit PIL image.

    | input | becomes |
    |---|---|
    | EXIF orientation | applied |
    | alpha, or a transparent color | blended with white |
    | palette, CMYK, YCbCr, HSV | RGB |
    | 16-bit gray, uint16 | divided by 257 |
    | float (mode F too) | times 255; must lie in [0, 1], but for the overshoot of bicubic resizing |
    | 32-bit gray | as 16-bit in a PNG or PPM, else refused: nothing says what white is |

    Args:
        item: a PIL image; a path; an array (H, W), (H, W, C) or (C, H, W), or a tensor (H, W) or (C, H, W),
            C = 1 or 3; uint8, uint16, bool or floating; or a tuple or list that starts with one of these.
        name: what the errors call it.

    Returns:
        A PIL image of mode "L" or "RGB".

    Raises:
        TypeError: if it is none of these.
        ValueError: for another shape, mode or range of values (NaN too).
        UnreadableImageError: if its file is missing, truncated or no image.

    Example:
        >>> as_image(np.ones((4, 6))).size
        (6, 4)
    """
    from PIL import Image

    item = image_of(item)
    if isinstance(item, str | os.PathLike):
        return read_image(item)
    if isinstance(item, Image.Image):
        return _from_pil(item, name)
    if not isinstance(item, np.ndarray | torch.Tensor):
        raise TypeError(
            f"{name} must be a PIL image, an array, a tensor or a path, got {type(item).__qualname__}"
        )
    return Image.fromarray(_to_bytes(_channels_last(item, name), name))


def image_of(sample: Any) -> Any:
    """The image of a sample, which may be a tuple or list that starts with it."""
    return sample[0] if isinstance(sample, tuple | list) and sample else sample


def upright(item: Any) -> Any:
    """A PIL image as `as_image` makes it; anything else as it is."""
    return as_image(item) if hasattr(item, "getbands") else item


def resized(image: Image, size: tuple[int, int]) -> Image:
    """A PIL image of this width and height, stretched bilinearly."""
    return image if image.size == size else image.resize(size, 2)  # bilinear, PIL not imported for this


def mirror(image: Any) -> Any:
    """The image mirrored left to right.

    Args:
        image: a tensor (..., H, W), an array (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4, a PIL image
            (see `upright`), or a tuple or list of these (several views of one sample).

    Returns:
        The same kind of thing, a copy.

    Raises:
        TypeError: for anything else.
        ValueError: if the shape does not tell which axis runs from left to right.

    Example:
        >>> mirror(torch.tensor([[1, 2, 3]])).tolist()
        [[3, 2, 1]]
    """
    if isinstance(image, torch.Tensor) and image.ndim >= 2:
        check_channels_first(image, "image")
        return image.flip(-1)
    if isinstance(image, np.ndarray) and image.ndim >= 2:
        across = 1 if image.ndim == 2 or _is_channels_last(image.shape, "image") else 2
        return np.ascontiguousarray(np.flip(image, across))
    if isinstance(image, tuple | list):
        views = [mirror(view) for view in image]
        return views if isinstance(image, list) else tuple(views)
    if hasattr(image, "transpose") and hasattr(image, "getbands"):  # PIL, not imported for this
        from PIL import Image

        return upright(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    raise TypeError(
        f"an image must be a tensor, an array or a PIL image to be mirrored, got {type(image).__module__}."
        f"{type(image).__qualname__}"
    )


def scale_pixels(images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Cast images of any shape to a floating dtype; uint8 is divided by 255, uint16 by 65535 on the way.

    Raises:
        TypeError: for another integer dtype, or a dtype that is not floating.

    Example:
        >>> scale_pixels(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
        [0.0, 1.0]
    """
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating, got {dtype}")
    highest = {torch.uint8: 255, torch.uint16: 65535}.get(images.dtype, 1)
    if highest == 1 and not images.is_floating_point() and images.dtype != torch.bool:
        raise TypeError(
            f"images must be uint8 in 0..255 or floating point in [0, 1], got {images.dtype}: "
            "convert them with .to(torch.uint8)"
        )
    return images.to(dtype) if highest == 1 else images.to(dtype) / highest


def check_pixels(images: torch.Tensor, name: str = "images") -> None:
    """Refuse floating images that are not in [0, 1]; an overshoot of 0.25, as of bicubic resizing, passes.

    Raises:
        ValueError: naming the range that was found.

    Example:
        >>> check_pixels(torch.tensor([0.0, 255.0]))
        Traceback (most recent call last):
        ValueError: images must be floating in [0, 1], found values in [0, 255]: divide bytes by 255, and ...
    """
    if not images.numel():
        return
    low, high = (float(value) for value in torch.aminmax(images.detach()))
    if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
        raise ValueError(
            f"{name} must be floating in [0, 1], found values in [{low:g}, {high:g}]: divide bytes by 255, "
            "and leave normalization out of the transforms (a trainer's dtype=torch.float32 casts bytes "
            "without dividing them: leave it out)"
        )


def per_channel(values: float | Sequence[float], name: str, positive: bool = False) -> torch.Tensor:
    """(1, C, 1, 1) from a number a channel, or (1, 1, 1, 1) from one for all."""
    try:
        each = [values] if isinstance(values, int | float) else list(values)
    except TypeError:
        raise TypeError(f"{name} must be a number, or one a channel, got {values!r}") from None
    low = 0.0 if positive else -math.inf
    return torch.tensor([as_real(value, name, low=low, open_low=positive) for value in each]).view(
        1, -1, 1, 1
    )


def per_color(values: Sequence[float], name: str, positive: bool = False) -> torch.Tensor:
    """(1, 3, 1, 1) from three numbers."""
    found = per_channel(values, name, positive)
    if found.shape[1] != 3:
        raise ValueError(f"{name} must be three numbers, one a channel, got {values}")
    return found


def normalized(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """(x - mean) / std of pixels x in [0, 1], float32."""
    for name, values in (("mean", mean), ("std", std)):
        if values.shape[1] not in (1, images.shape[1]) and images.shape[1] != 1:
            raise ValueError(
                f"{name} must hold one number, or one a channel ({images.shape[1]}), got {values.shape[1]}"
            )
    if images.is_floating_point():
        check_pixels(images)
    return (scale_pixels(images) - mean) / std


@contextmanager
def needs_floats(images: torch.Tensor) -> Iterator[None]:
    """A TypeError in place of torch's RuntimeError when a network does not take images of this dtype."""
    try:
        yield
    except RuntimeError as error:
        floating = images.is_floating_point()
        if not _ABOUT_DTYPES.search(str(error)):
            raise
        wanted = "float32: convert them with .float()"
        if images.dtype == torch.float32:
            wanted = "others: convert it with .float(), or give amp= its dtype"
        if not floating:
            wanted = "floating ones: put BatchAugmentation() in front, or give extract mean= and std="
        raise TypeError(f"the images are {images.dtype} and the network wants {wanted} ({error})") from error


def _from_pil(image: Image, name: str) -> Image:
    from PIL import Image, ImageOps

    source = image.format
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and source in ("PNG", "PPM")):
        return Image.fromarray(_to_bytes(np.asarray(image).clip(0, 65535).astype(np.uint16), name))
    if image.mode == "F":
        return Image.fromarray(_to_bytes(np.asarray(image), name))
    if image.mode in ("I", "LAB"):
        raise ValueError(
            f"{name} has the mode {image.mode}, which does not say what black and white are: convert it to "
            "uint8, uint16 or RGB first"
        )
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("L" if image.mode in ("L", "1") else "RGB")


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as an array; bfloat16 becomes float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _channels_last(item: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """(H, W) or (H, W, 3), of the dtype given; bfloat16 becomes float32."""
    array = item if isinstance(item, np.ndarray) else to_numpy(item)
    is_tensor = isinstance(item, torch.Tensor)
    first = array.ndim == 3 and (is_tensor or not _is_channels_last(array.shape, name))
    array = np.moveaxis(array, 0, 2) if first else array
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or array.size == 0:
        raise ValueError(f"{name} must be gray or have 3 channels, got the array shape {tuple(item.shape)}")
    return array


def _is_channels_last(shape: tuple[int, ...], name: str) -> bool:
    """Whether a 3-D array is (H, W, C), not (C, H, W)."""
    last, first = shape[-1] in _CHANNELS, shape[0] in _CHANNELS
    if len(shape) != 3 or last == first:
        raise ValueError(
            f"{name} must be gray or have 3 channels, first or last, got the array shape {shape}: "
            "make it a tensor (channels, H, W) where the shape does not tell"
        )
    return last


def check_channels_first(image: torch.Tensor, name: str) -> None:
    """Refuse a tensor (..., H, W, 3 or 4)."""
    shape = tuple(image.shape[-3:])
    if len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) > 4:
        raise ValueError(
            f"{name} must be a tensor (channels, H, W), got {tuple(image.shape)}: move its last axis to the "
            "front, as torchvision's ToImage does with arrays"
        )


def _to_bytes(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind == "b":
        return np.where(array, np.uint8(255), np.uint8(0))
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        return np.round(array / 257).astype(np.uint8)
    low, high = array.min(), array.max()
    if array.dtype.kind != "f" or not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
        raise ValueError(
            f"{name} must be uint8, uint16 or floating in [0, 1], got {array.dtype} in [{low}, {high}]: "
            "leave normalization out of the transforms, and divide bytes by 255"
        )
    return np.round(array.clip(0, 1) * 255).astype(np.uint8)
