"""Features of images, one row a sample in dataset order: HOG-LDA to start from, the network's own later."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from .._random import preserved_randomness, seed_everything
from ..distributed.process_group import all_gather_rows, is_main
from ..distributed.sharing import shard, shares_work, together
from .hog_lda import unit_rows

__all__ = ["extract", "similarity"]


def similarity(a: np.ndarray, b: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """exp(-||a - b|| / scale) of features, row against row.

    Args:
        a: (..., D) features.
        b: (..., D) features; broadcast against a.
        scale: of the distance, > 0. Default 1, the paper's.

    Returns:
        (...) in [0, 1], 1 for equal features.

    Raises:
        ValueError: if scale is not positive.

    Source: section 3.1 of the paper.
    Differs from the paper: in nothing known, with scale 1.

    Example:
        >>> similarity(np.zeros(2), np.array([[0.0, 0.0], [3.0, 4.0]])).round(4).tolist()
        [1.0, 0.0067]
    """
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    return np.exp(-np.linalg.norm(np.asarray(a) - np.asarray(b), axis=-1) / scale)


def extract(
    model: torch.nn.Module,
    dataset: Any,
    *,
    batch_size: int = 128,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    mirror: bool = False,
    normalize: bool = True,
    amp: bool | torch.dtype = True,
    progress: bool = True,
) -> Any:
    """Features of a network, in dataset order.

    The network is put into eval mode meanwhile, and every submodule back into the mode it was in. No gradient
    is kept. The global random generators are as before afterwards; a dataset with random transforms gets the
    same ones every time.

    Inside `pml_posets.sharing.shared_work` every rank takes whole batches of its own and gets the rows of
    all: on a CPU, of a dataset without random transforms, the very numbers of one process.

    Args:
        model: any module from (B, channels, H, W) to (B, D) or (B, ...), which is flattened; for a trunk and
            an embedder, `torch.nn.Sequential(trunk, embedder)`.
        dataset: yields an image tensor (channels, H, W), or a tuple or list that starts with one.
        batch_size: images at once. Default 128.
        num_workers: processes that load images; 0 (default): this one.
        device: where to compute; the model is moved there, and stays. None (default): where it is.
        mirror: also features of the horizontally mirrored images. Default False.
        normalize: scale rows to unit length. Default True.
        amp: mixed precision: a dtype (torch.bfloat16, torch.float16) for any device; True (default): float16
            on a GPU, none on a CPU; False: none. A batch that overflows is done again in full.
        progress: show a progress bar. Default True.

    Returns:
        (N, D) float32, or two of them with mirror: of the images and of the mirrored images.

    Raises:
        TypeError: if the dataset has no length or does not yield tensors, or the model returns none.
        ValueError: if the dataset is empty, or a feature is NaN or infinite (the message says whose), or for
            another amp.

    Source: section 3.4 of the paper (features are extracted anew in every round).
    Differs from the paper: in nothing known.

    Example:
        >>> images = [(torch.rand(3, 8, 8), label) for label in range(5)]
        >>> features = extract(torch.nn.Flatten(), images, progress=False)
        >>> features.shape, features.dtype
        ((5, 192), dtype('float32'))
    """
    from tqdm.auto import tqdm

    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(f"dataset must have a length and items by index, got {type(dataset).__qualname__}")
    num_samples = len(dataset)
    if num_samples == 0:
        raise ValueError("dataset must hold at least one sample, got none")
    if device is None:
        place = next((p.device for p in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    else:
        place = torch.device(device)
        model.to(place)
    if not isinstance(amp, bool) and amp not in (torch.bfloat16, torch.float16):
        raise ValueError(f"amp must be True, False, torch.bfloat16 or torch.float16, got {amp!r}")
    half = amp if isinstance(amp, torch.dtype) else None
    if amp is True and place.type == "cuda":
        half = torch.float16
    modes = [(module, module.training) for module in model.modules()]
    views: list[np.ndarray] = []
    mine = range(num_samples)
    if shares_work():
        batches = shard(-(-num_samples // batch_size))
        mine = mine[batches.start * batch_size : batches.stop * batch_size]
    shown = progress and (is_main() or not shares_work())
    try:
        with (
            together() if shares_work() else nullcontext(),
            preserved_randomness(),
            torch.no_grad(),
            tqdm(total=len(mine), desc="features", unit="image", disable=not shown) as bar,
        ):
            seed_everything(0)
            model.eval()
            loader = DataLoader(
                dataset,
                batch_size=batch_size,
                sampler=mine,
                num_workers=num_workers,
                collate_fn=_stack_images,
                pin_memory=place.type == "cuda",
            )
            start = 0
            for images in loader:
                images = images.to(place, non_blocking=True)
                for v, view in enumerate([images, images.flip(-1)] if mirror else [images]):
                    rows = _forward(model, view, half, mine.start + start)
                    if v == len(views):
                        views.append(np.empty((len(mine), rows.shape[1]), np.float32))
                    views[v][start : start + len(rows)] = rows
                start += len(images)
                bar.update(len(images))
    finally:
        for module, mode in modes:
            module.training = mode
    if shares_work():
        missing = [np.empty((0, 0), np.float32)] * (1 + mirror)  # a rank without a batch
        views = [all_gather_rows(view) for view in views or missing]
    if normalize:
        views = [unit_rows(view) for view in views]
    return (views[0], views[1]) if mirror else views[0]


def _stack_images(items: list[Any]) -> torch.Tensor:
    images = [item[0] if isinstance(item, tuple | list) else item for item in items]
    for image in images:
        if not isinstance(image, torch.Tensor):
            raise TypeError(
                f"dataset must yield image tensors (channels, H, W), got {type(image).__qualname__}: "
                "add a transform that makes tensors"
            )
    return torch.stack(images)


def _forward(
    model: torch.nn.Module, images: torch.Tensor, half: torch.dtype | None, start: int
) -> np.ndarray:
    """(B, D) float32 of one batch; `start` is the index of its first sample."""
    with torch.autocast(images.device.type, dtype=half, enabled=half is not None):
        out = model(images)
    if not isinstance(out, torch.Tensor) or out.ndim < 2 or len(out) != len(images):
        found = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__qualname__
        raise TypeError(
            f"model must return a tensor ({len(images)}, ...) for {len(images)} images, got {found}"
        )
    rows = out.float().flatten(1)
    finite = rows.isfinite().all(1)
    if not bool(finite.all()):
        if half is not None:
            return _forward(model, images, None, start)
        index = start + int((~finite).nonzero()[0])
        raise ValueError(
            f"the features of dataset[{index}] hold a NaN or an infinite value: has training diverged, or "
            "is the image itself not finite?"
        )
    return rows.cpu().numpy()
