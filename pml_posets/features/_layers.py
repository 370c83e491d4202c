"""The output of a network or of one of its layers, as rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .._networks import ReachedError, hooked, submodules
from .._validation import as_count, as_real
from ..data.images import needs_floats, normalized, per_channel
from ._rows import Rows


class LayerReader:
    """Rows of a model's output or of a layer's, for batches of images; for the arguments see `extract`."""

    def __init__(
        self,
        model: nn.Module,
        layer: str | None,
        grid: int | tuple[int, int] | None,
        window: float | tuple[float, float] | None,
        mean: float | Sequence[float] | None,
        std: float | Sequence[float] | None,
        device: torch.device,
        amp: bool | torch.dtype,
    ) -> None:
        if not isinstance(amp, bool) and not any(amp is half for half in (torch.bfloat16, torch.float16)):
            raise ValueError(f"amp must be True, False, torch.bfloat16 or torch.float16, got {amp!r}")
        self.model, self.layer, self.device = model, layer, device
        names = [] if layer is None else [layer]
        self.target = submodules(model, names, "layer must be a submodule of the model")
        self.called_once = False  # known after a whole forward pass
        self.channels_last = any(isinstance(part, nn.Conv2d) for part in model.modules())  # faster: speed.py
        self.half = amp if isinstance(amp, torch.dtype) else None
        if amp is True and device.type == "cuda":
            self.half = torch.float16
        self.grid = as_pair(grid, "grid")
        self.window = None
        if window is not None:
            both = window if isinstance(window, tuple) else (window, window)
            self.window = [as_real(sigma, "window", low=0, open_low=True) for sigma in both]
        self.mean = per_channel(0.0 if mean is None else mean, "mean").to(device)
        self.std = per_channel(1.0 if std is None else std, "std", positive=True).to(device)
        self.scales = mean is not None or std is not None

    def __call__(self, images: torch.Tensor, start: int) -> Rows:
        """(B, D) float32 of one batch; `start` is the index of its first sample."""
        images = normalized(images, self.mean, self.std) if self.scales else images
        return self._rows(images, start, self.half)

    def _rows(self, images: torch.Tensor, start: int, half: torch.dtype | None) -> Rows:
        if self.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        try:
            with torch.autocast(self.device.type, dtype=half, enabled=half is not None), needs_floats(images):
                out = self._forward(images)
        except RuntimeError as error:
            if not self.channels_last or "view size" not in str(error):
                raise
            self.channels_last = False  # a network that views its maps as rows
            return self._rows(images.contiguous(), start, half)
        if not isinstance(out, torch.Tensor) or out.ndim < 2 or len(out) != len(images) or out.is_complex():
            found = type(out).__qualname__
            if isinstance(out, torch.Tensor):
                found = str(out.dtype if out.is_complex() else tuple(out.shape))
            raise TypeError(
                f"{'model' if self.layer is None else 'layer ' + self.layer} must return a tensor "
                f"({len(images)}, ...) for {len(images)} images, got {found}"
            )
        rows = self._pooled(out.float()).flatten(1)
        finite = rows.isfinite().all(1)
        if not bool(finite.all()):
            if half is not None:
                return self._rows(images, start, None)
            index = start + int((~finite).nonzero()[0])
            raise ValueError(
                f"the features of dataset[{index}] hold a NaN or an infinite value: has training diverged, "
                "or is the image itself not finite?"
            )
        return np.asarray(rows.cpu().numpy())

    def _forward(self, images: torch.Tensor) -> object:
        found: list[object] = []

        def keep(name: str, output: object) -> None:
            if self.called_once:
                found.append(output)
                raise ReachedError
            found.append(output.clone() if isinstance(output, torch.Tensor) else output)  # of in-place layers

        try:
            with hooked(self.target, keep):
                whole = self.model(images)
        except ReachedError:
            pass
        except RuntimeError:
            if not found:  # else it is of layers behind, made for images of another size
                raise
        if not self.target:
            return whole
        if len(found) != 1:
            raise ValueError(
                f"layer {self.layer!r} must be called once in the model's forward pass, is called "
                f"{len(found)} times: take another"
            )
        self.called_once = True
        return found[0]

    def _pooled(self, out: torch.Tensor) -> torch.Tensor:
        if self.grid is None and self.window is None:
            return out
        if out.ndim != 4:
            raise ValueError(
                f"grid and window are for maps (B, C, H, W), got an output of shape {tuple(out.shape)}: "
                "leave them out, or take another layer"
            )
        if self.grid is not None:
            out = F.adaptive_avg_pool2d(out, self.grid)
        if self.window is not None:
            across, down = (
                torch.exp(-0.5 * ((torch.arange(n, device=out.device) - (n - 1) / 2) / sigma) ** 2)
                for n, sigma in zip((out.shape[3], out.shape[2]), self.window, strict=True)
            )
            out = out * down[:, None] * across
        return out


def as_pair(value: int | tuple[int, int] | None, name: str) -> tuple[int, int] | None:
    """Two counts, from one or two, or None."""
    if value is None:
        return None
    height, width = value if isinstance(value, tuple) else (value, value)
    return as_count(height, name), as_count(width, name)
