"""Training the last part of a network on stored maps of its frozen front."""

from __future__ import annotations

import copy
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .._io import atomic_write, check_folder
from .._networks import ReachedError, device_of, hooked, in_eval_mode, submodules
from .._random import derive_seeds, preserved_randomness, seed_everything, seeded
from .._validation import as_count, as_real, check_module
from ..data.augmentation import BatchAugmentation
from ..data.datasets import as_index, check_dataset
from ..data.identity import data_identity, digest, weights_digest
from ..data.images import image_of

__all__ = ["CachedMaps", "FromLayer"]


class FromLayer(nn.Module):
    """A network from one of its layers on: takes that layer's maps in place of images.

    For training on `CachedMaps`. Works with any network in which nothing passes the layer by: the network
    runs on one blank image, and its maps at the layer are replaced by those given. What runs before the layer
    is frozen and stays in evaluation mode.

    Args:
        network: the module (B, 3, S, S) -> anything. It is shared, not copied: what is trained is it.
        layer: name of a submodule, as in `network.named_modules()`.
        image_size: S, pixels.

    Attributes:
        network, layer: as given.
        shape: of the layer's maps for one image, (C, H, W) or whatever it gives.

    Shapes: (B, *shape) floating point -> what the network gives.

    Raises:
        ValueError: for an unknown layer, or a network that reads its images behind it too.

    Source: none, an addition.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).eval()
        >>> images = torch.rand(5, 3, 8, 8)
        >>> tail = FromLayer(network, "1", image_size=8)
        >>> torch.allclose(tail(network[:2](images)), network(images))
        True
    """

    def __init__(self, network: nn.Module, layer: str, image_size: int) -> None:
        super().__init__()
        check_module(network, "network")
        submodules(network, [layer], "layer must be a submodule of the network")
        self.network, self.layer, self.image_size = network, layer, as_count(image_size, "image_size")
        self._front: list[str] = []
        self._check()

    def forward(self, maps: torch.Tensor) -> Any:
        """What the network gives for images with these maps."""
        target = self.network.get_submodule(self.layer)

        def replace(module: nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
            return maps.to(output.dtype, copy=True)  # layers behind may write into it

        hook = target.register_forward_hook(replace)
        try:
            out = self.network(self._images(1, maps.device))
            by_count = isinstance(out, torch.Tensor) and len(out) != len(maps)  # out.view(len(images), -1)
            return out.reshape(len(maps), -1) if by_count else out
        finally:
            hook.remove()

    def front(self, images: torch.Tensor) -> torch.Tensor:
        """The layer's maps of images, without gradient; what lies behind the layer is not computed."""
        found: list[torch.Tensor] = []

        def stop(name: str, output: torch.Tensor) -> None:
            found.append(output)
            raise ReachedError

        target = {self.layer: self.network.get_submodule(self.layer)}
        with torch.no_grad(), suppress(ReachedError), hooked(target, stop):
            self.network(images)
        return found[0]

    def train(self, mode: bool = True) -> FromLayer:
        """Set the mode of what runs behind the layer; what runs before it stays in evaluation mode."""
        super().train(mode)
        for name in self._front:
            self.network.get_submodule(name).eval()
        return self

    def _images(self, count: int, device: torch.device) -> torch.Tensor:
        return torch.zeros(count, 3, self.image_size, self.image_size, device=device)

    def _check(self) -> None:
        """Find the front, freeze it, and see that maps say all that the network needs."""
        order: list[str] = []
        parts = {name: module for name, module in self.network.named_modules() if name}
        with seeded(0), in_eval_mode(self.network):
            images = torch.rand_like(self._images(2, device_of(self.network)))
            with hooked(parts, lambda name, output: order.append(name)):
                whole = self.network(images)
            maps = self.front(images)
            again = self.forward(maps)
        self.shape = tuple(maps.shape[1:])
        is_tensor = isinstance(whole, torch.Tensor)
        if is_tensor and not (whole.shape == again.shape and torch.allclose(whole, again, 1e-3, 1e-4)):
            raise ValueError(
                f"the network gives something else for the maps of {self.layer!r} than for their images: it "
                "reads the images, or layers before, behind that layer too; take a later one"
            )
        self._front = order[: order.index(self.layer) + 1]
        for name in self._front:
            for parameter in self.network.get_submodule(name).parameters():
                parameter.requires_grad_(False)
        self.train(self.network.training)


class CachedMaps(Dataset[torch.Tensor]):
    """Maps of a frozen front for some random views of each image, computed once and read from a file.

    The front of a network takes most of the time of its training. Here it runs once for each view; training
    what lies behind it on the stored maps is several times faster. An item is one of the views of an image,
    drawn by torch's generator, so that a seed gives the same one; `plain` holds the maps of the images as
    they are, for the features of a y-step and for the judge. The file is mapped into memory, and the
    operating system keeps as much of it there as there is room. It is named after network, images and
    settings, and computed again when one of them changes.

    Args:
        dataset: (3, S, S) uint8 tensors, or floats in [0, 1], all of one size, as `ImageStore` has them.
        tail: the network behind the layer; its `front` makes the maps.
        folder: where the file lies; made if missing.
        augmentation: makes the views, and normalizes the images as the network wants them. Default:
            `BatchAugmentation(brightness=0.4, color=0.1, gray=0.1)`, with mean and deviation of ImageNet.
        num_views: V random views of each image; 0: an item is the image as it is. Default 8.
        mirror: every second view is mirrored first. Default True.
        max_gib: the most that the file may take, GiB of 2^30 bytes. It takes 2 (V + 1) N C H W bytes. Default
            16.
        batch_size: images at once. Default 128.
        amp: torch.bfloat16 or torch.float16, to compute the maps in that precision. Default None: in full.
        data_id: as for `ImageStore`. Default None.
        seed: of the views, from 0. Default 0.
        progress: show a progress bar. Default True.

    Attributes:
        path: the file, (V + 1, N, *shape) float16.
        plain: dataset of the maps of the unchanged images, in the same order.

    Item i is float32 of the tail's shape.

    Raises:
        ValueError: for arguments out of range, or a file that would be larger than max_gib.
        OSError: if there is no room for it.
        TypeError: without data_id, if nothing says when the images change.

    Source: none, an addition.

    Example:
        >>> import tempfile
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).eval()
        >>> images = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
        >>> tail = FromLayer(network, "1", image_size=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     maps = CachedMaps(images, tail, folder, num_views=2, progress=False)
        ...     len(maps), maps[3].shape, maps.plain[3].shape
        (6, torch.Size([4, 6, 6]), torch.Size([4, 6, 6]))
    """

    def __init__(
        self,
        dataset: Any,
        tail: FromLayer,
        folder: str | os.PathLike[str],
        *,
        augmentation: nn.Module | None = None,
        num_views: int = 8,
        mirror: bool = True,
        max_gib: float = 16.0,
        batch_size: int = 128,
        amp: torch.dtype | None = None,
        data_id: str | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        self.num_views, seed = as_count(num_views, "num_views", 0), as_count(seed, "seed", 0)
        check_module(augmentation, "augmentation", optional=True)
        if not isinstance(amp, torch.dtype | None):
            raise TypeError(f"amp must be torch.bfloat16, torch.float16 or None, got {amp!r}")
        augment = augmentation or BatchAugmentation(brightness=0.4, color=0.1, gray=0.1)
        self._shape = (self.num_views + 1, check_dataset(dataset), *tail.shape)
        size = 2 * int(np.prod(self._shape))
        if size > as_real(max_gib, "max_gib", low=0) * 2**30:
            raise ValueError(
                f"the maps would take {size / 2**30:.1f} GiB of {max_gib} (max_gib): take fewer views, "
                "smaller images, a later layer, or raise max_gib"
            )
        # What lies behind the layer may be trained without making new maps.
        front = [weights_digest(tail.network.get_submodule(name)) for name in tail._front]
        settings = {"shape": self._shape, "seed": seed, "mirror": bool(mirror), "amp": repr(amp)}
        settings |= {"augmentation": repr(augment), "layer": tail.layer, "weights": front}
        name = digest(settings, data_identity(dataset, data_id))
        self.path = Path(folder) / f"maps-{name[:24]}.npy"
        if not self.path.exists():
            check_folder(folder, size)
            loader = DataLoader(dataset, as_count(batch_size, "batch_size"), collate_fn=_stack)
            self._make(loader, tail, augment, mirror, amp, seed, progress)
        self._maps = np.load(self.path, mmap_mode="r")
        self.plain = copy.copy(self)
        self.plain.num_views = 0

    def _make(
        self,
        loader: DataLoader[Any],
        tail: FromLayer,
        augment: nn.Module,
        mirror: bool,
        amp: torch.dtype | None,
        seed: int,
        progress: bool,
    ) -> None:
        from tqdm.auto import tqdm

        device = device_of(tail)
        bar = tqdm(total=self._shape[0] * self._shape[1], desc="maps", unit="image", disable=not progress)
        kind = amp or torch.bfloat16
        # Written, not mapped: a full disk is then an error, where a mapped file kills the process.
        with (
            atomic_write(self.path) as file,
            bar,
            preserved_randomness(),
            in_eval_mode(tail),
            torch.autocast(device.type, dtype=kind, enabled=amp is not None),
        ):
            header = {"descr": "<f2", "fortran_order": False, "shape": self._shape}
            np.lib.format.write_array_header_1_0(file, header)
            for view in range(self._shape[0]):  # 0: the images as they are
                augment.train(view > 0)
                for number, images in enumerate(loader):
                    seed_everything(derive_seeds(seed, view, number)[0])
                    images = images.flip(-1) if mirror and view % 2 else images
                    maps = tail.front(augment(images.to(device))).half().cpu().numpy()
                    if not np.isfinite(maps).all():
                        raise ValueError("the maps hold numbers that float16 cannot: take another layer")
                    file.write(maps.tobytes())
                    bar.update(len(images))

    def __len__(self) -> int:
        return self._shape[1]

    def __getitem__(self, index: int) -> torch.Tensor:
        view = 1 + int(torch.randint(self.num_views, (1,))) if self.num_views else 0
        return torch.from_numpy(self._maps[view, as_index(index, len(self))].astype(np.float32))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_maps"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._maps = np.load(self.path, mmap_mode="r")


def _stack(items: list[Any]) -> torch.Tensor:
    return torch.stack([image_of(item) for item in items])
