"""Features of any network: its output or any layer of it, one row a sample in dataset order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, overload

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from torch import nn
from torch.utils.data import Dataset

from .._networks import device_of, in_eval_mode
from .._random import seeded
from .._validation import as_count, as_device, as_flag, check_module, unit_rows
from ..data.datasets import SeededDataset, read_batches
from ..data.images import as_image, check_channels_first, image_of, resized
from ..distributed.sharing import leads_work
from ._layers import LayerReader, as_pair
from ._rows import Rows, collect_rows
from .saving import ImageStep

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack

__all__ = ["NetworkFeatures", "extract"]

Size: TypeAlias = "int | tuple[int, int] | None"


class _Options(TypedDict, total=False):
    """Of `extract`, besides mirror."""

    layer: str | None
    grid: int | tuple[int, int] | None
    window: float | tuple[float, float] | None
    center: bool
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None
    size: Size
    crop: Size
    batch_size: int
    num_workers: int
    device: str | torch.device | None
    normalize: bool
    amp: bool | torch.dtype
    progress: bool


@overload
def extract(
    model: nn.Module, dataset: Any, *, mirror: Literal[False] = False, **options: Unpack[_Options]
) -> Rows: ...


@overload
def extract(
    model: nn.Module, dataset: Any, *, mirror: Literal[True], **options: Unpack[_Options]
) -> tuple[Rows, Rows]: ...


@overload
def extract(
    model: nn.Module, dataset: Any, *, mirror: bool, **options: Unpack[_Options]
) -> Rows | tuple[Rows, Rows]: ...


def extract(
    model: nn.Module,
    dataset: Any,
    *,
    layer: str | None = None,
    grid: int | tuple[int, int] | None = None,
    window: float | tuple[float, float] | None = None,
    center: bool = False,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    size: Size = None,
    crop: Size = None,
    batch_size: int = 128,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    mirror: bool = False,
    normalize: bool = True,
    amp: bool | torch.dtype = True,
    progress: bool = True,
) -> Rows | tuple[Rows, Rows]:
    """Features of a network or of one of its layers, in dataset order.

    The network is in eval mode; random transforms draw the same for an item each time. Inside `shared_work`
    of several processes every rank takes whole batches and gets the rows of all: those of one process.

    Args:
        model: any module from (B, channels, H, W) to (B, D) or (B, ...), which is flattened.
        dataset: image tensors (channels, H, W), or tuples that start with one; with size or crop any image.
        layer: the submodule whose output is taken, such as "blocks.10". None (default): the model.
        grid: average maps (B, C, H, W) over (rows, columns) cells, or the number of both. Default: none.
        window: standard deviations (x, y) in cells of a Gaussian that multiplies the cells. Default: none.
        mean, std: of what the network was trained on, in [0, 1]: it gets (x - mean) / std. Default: none.
        size: resize the shorter side, and crop the middle; (height, width): stretch. Default: neither.
        crop: cut the middle out, (height, width) or a side. Default: a square of size, if that is one number.
        batch_size, num_workers: images at once, default 128; processes that load them, default 0: this one.
        device: where to compute; the model stays there. None (default): where it is.
        mirror: also features of the mirrored images. Default False.
        center, normalize: subtract the mean, default False; scale rows to unit length, default True.
        amp: mixed precision: a dtype; True (default): float16 on GPUs; False: none. Overflows are done again.
        progress: show a progress bar. Default True.

    Returns:
        (N, D) float32, or with mirror two of them: of the images and of the mirrored images.

    Raises:
        TypeError, ValueError: for data, layers or features that do not fit; the message says which.

    Example:
        >>> images = [(torch.rand(3, 8, 8), label) for label in range(5)]
        >>> extract(torch.nn.Flatten(), images, progress=False).shape
        (5, 192)
    """
    mirror, center, normalize = map(as_flag, (mirror, center, normalize), ("mirror", "center", "normalize"))
    reader = LayerReader(model, layer, grid, window, mean, std, _placed(model, device), amp)
    views = _read(reader, Images(dataset, size, crop), batch_size, num_workers, mirror, progress)
    if center:
        middle = views[0].mean(axis=0)
        views = [view - middle for view in views]
    views = [unit_rows(view) for view in views] if normalize else views
    return (views[0], views[1]) if mirror else views[0]


def _placed(model: nn.Module, device: str | torch.device | None) -> torch.device:
    """Where a model is after it has been moved to a device, or left where it is."""
    check_module(model, "model", advice=": wrap it in one")
    if device is None:
        return device_of(model)
    model.to(place := as_device(device))
    return place


def _read(
    reader: LayerReader, items: Images, batch_size: int, num_workers: int, mirror: bool, progress: bool
) -> list[Rows]:
    """Rows of the images, and with mirror of the mirrored ones; random transforms draw the same each time."""
    batch_size = as_count(batch_size, "batch_size")
    shown, pin = progress and leads_work(), reader.device.type == "cuda"

    def batches(samples: range) -> Iterator[list[Rows]]:
        start = samples.start
        loader = read_batches(items, samples, _stack_images, batch_size, num_workers, "features", shown, pin)
        for images in loader:
            images = images.to(reader.device, non_blocking=True)
            if mirror:
                check_channels_first(images, "images")
            yield [reader(view, start) for view in ([images, images.flip(-1)] if mirror else [images])]
            start += len(images)

    with seeded(0), in_eval_mode(reader.model):
        return collect_rows(len(items), batch_size, 1 + mirror, batches)


@dataclass(eq=False, repr=False)
class NetworkFeatures(ImageStep):
    """`extract` as a step of a scikit-learn Pipeline: images in, rows out.

    Args:
        network: the module. `save` leaves it out: give it to `features.load` again.
        layer, grid, window, mean, std, size, crop, normalize, batch_size, num_workers, device, amp: as for
            `extract`.
        center: subtract the mean of the rows that `fit` was given. Default False.

    Attributes:
        mean_: (D,) float32, what is subtracted; zeros without center. None before `fit`.

    Example:
        >>> from sklearn.decomposition import PCA
        >>> from sklearn.pipeline import make_pipeline
        >>> whitened = make_pipeline(NetworkFeatures(torch.nn.Flatten()), PCA(2, whiten=True))
        >>> whitened.fit_transform(torch.rand(9, 3, 4, 4)).shape
        (9, 2)
    """

    network: nn.Module
    layer: str | None = None
    grid: int | tuple[int, int] | None = None
    window: float | tuple[float, float] | None = None
    center: bool = False
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    size: Size = None
    crop: Size = None
    normalize: bool = True
    batch_size: int = 128
    num_workers: int = 0
    device: str | None = None
    amp: bool | torch.dtype = True

    def fit(self, images: Any, y: None = None) -> NetworkFeatures:
        """Learn the mean of the rows, where it is to be subtracted; y is ignored."""
        self.fit_transform(images)
        return self

    def fit_transform(self, images: Any, y: None = None) -> Rows:
        """`fit` and `transform` of the same images, with one pass through the network."""
        rows = self._extract(images if self.center else [images[0]])
        self.mean_ = rows.mean(axis=0) if self.center else np.zeros(rows.shape[1], np.float32)
        return self._finish(rows) if self.center else self.transform(images)

    @overload
    def transform(self, images: Any, mirror: Literal[False] = False) -> Rows: ...

    @overload
    def transform(self, images: Any, mirror: bool) -> Rows | tuple[Rows, Rows]: ...

    def transform(self, images: Any, mirror: bool = False) -> Rows | tuple[Rows, Rows]:
        """Rows of images, and with mirror those of the mirrored images too.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: as `extract`.
        """
        if self.mean_ is None:
            raise NotFittedError("NetworkFeatures has learned nothing yet: call fit(images)")
        if not mirror:
            return self._finish(self._extract(images))
        plain, mirrored = self._extract(images, mirror=True)
        return self._finish(plain), self._finish(mirrored)

    def _extract(self, images: Any, mirror: bool = False) -> Any:
        options = self.get_params(deep=False)
        network, _ = options.pop("network"), options.pop("center")
        return extract(network, images, **{**options, "normalize": False}, mirror=mirror, progress=False)

    def _finish(self, rows: Rows) -> Rows:
        rows = rows - np.asarray(self.mean_)
        return unit_rows(rows) if self.normalize else rows


class Images(Dataset[torch.Tensor]):
    """The image of each sample as a tensor, resized and cropped."""

    def __init__(self, dataset: Any, size: Size, crop: Size = None) -> None:
        self.items = SeededDataset(dataset)
        pair = as_pair(size, "size")
        self.size = pair if isinstance(size, tuple) else pair and pair[0]
        self.crop = as_pair(size if crop is None and isinstance(size, int) else crop, "crop")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = image_of(self.items[index])
        if self.size is not None or self.crop is not None:
            image = self._resized(as_image(image, f"dataset[{index}]").convert("RGB"), index)
        if not isinstance(image, torch.Tensor):
            raise TypeError(
                f"dataset must yield image tensors (channels, H, W), got {type(image).__qualname__}: "
                "add a transform that makes tensors, or give size="
            )
        return image

    def _resized(self, image: Image, index: int) -> torch.Tensor:
        width, height = image.size
        if isinstance(self.size, tuple):
            height, width = self.size
        elif self.size is not None:
            scale = self.size / min(width, height)
            width, height = max(self.size, round(width * scale)), max(self.size, round(height * scale))
        pixels = torch.from_numpy(np.array(resized(image, (width, height)))).permute(2, 0, 1)  # (3, H, W)
        if self.crop is None:
            return pixels
        rows, columns = self.crop
        if rows > height or columns > width:
            raise ValueError(
                f"crop must fit into the images, got {self.crop} and dataset[{index}] of height {height} and "
                f"width {width}: give a smaller crop, or size="
            )
        top, left = (height - rows) // 2, (width - columns) // 2
        return pixels[:, top : top + rows, left : left + columns].contiguous()


def _stack_images(images: list[torch.Tensor]) -> torch.Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(f"the images differ in shape, {' and '.join(map(str, sorted(shapes)))}: give size=")
    return torch.stack(images)
