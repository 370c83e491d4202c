"""An exponential moving average of a network's weights."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch.optim.swa_utils import AveragedModel

from .._validation import as_real

__all__ = ["moving_average"]

Tensors: TypeAlias = "tuple[torch.Tensor, ...] | list[torch.Tensor]"


def moving_average(model: torch.nn.Module, decay: float) -> AveragedModel:
    """A copy of a model whose weights follow it: w_mean += (1 - d) (w - w_mean) at each update.

    d is `decay`, but at the t-th update at most t / (t + 9): the mean leaves the initial weights soon.
    Floating point buffers (running means of batch norm) are averaged like weights, others are copied.

    Args:
        model: any module. `update_parameters(model)` takes its weights in.
        decay: d, in [0, 1). About 1 / (1 - d) updates are averaged; 0.999 is usual.

    Returns:
        torch's `AveragedModel`, in eval mode and without gradients; the copy itself is its `module`.

    Raises:
        ValueError: if the decay is out of range.

    Example:
        >>> model = torch.nn.Linear(1, 1)
        >>> mean = moving_average(model, decay=0.9)
        >>> with torch.no_grad():
        ...     _ = model.bias.fill_(10.0), mean.module.bias.fill_(0.0)
        >>> mean.update_parameters(model)
        >>> mean.module.bias.item()  # the first update: d = 1 / 10
        9.0
    """
    decay = as_real(decay, "decay of the average", low=0, high=1, open_high=True)

    def follow(means: Tensors, values: Tensors, updates: torch.Tensor | int) -> None:
        weight = 1 - torch.as_tensor(updates / (updates + 9)).clamp(max=decay)
        for mean, value in zip(means, values, strict=True):  # all of one dtype
            if value.is_floating_point():
                mean.lerp_(value, weight.to(value.dtype))
            else:
                mean.copy_(value)

    average = AveragedModel(model, multi_avg_fn=follow, use_buffers=True).eval().requires_grad_(False)
    average.n_averaged.fill_(1)  # else the first update would copy the weights
    return average
