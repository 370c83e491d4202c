"""An exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch

__all__ = ["MovingAverage"]


class MovingAverage:
    """Copies of models whose weights follow theirs: w_mean += (1 - d) (w - w_mean) after every step.

    d is `decay`, but at the t-th update at most t / (t + 9): the mean leaves the initial weights soon.
    Floating point buffers (running means of batch norm) are averaged like weights, others are copied.

    Args:
        models: by name; they may share nothing with each other.
        decay: d, in 0..1 without 1. About 1 / (1 - d) steps are averaged; 0.999 is usual.

    Attributes:
        models: the averaged copies by name, in eval mode, without gradients.

    Raises:
        ValueError: if the decay is out of range.

    Source: the teacher of the systems planned beside posets; usual practice.
    Differs from the paper: the paper has no such mean.

    Example:
        >>> model = torch.nn.Linear(1, 1)
        >>> mean = MovingAverage({"trunk": model}, decay=0.9)
        >>> with torch.no_grad():
        ...     _ = model.bias.fill_(10.0), mean.models["trunk"].bias.fill_(0.0)
        >>> mean.update({"trunk": model})
        >>> mean.models["trunk"].bias.item()  # the first update: d = 1 / 10
        9.0
    """

    def __init__(self, models: Mapping[str, torch.nn.Module], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the average must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self.num_updates = 0
        self.models = {name: deepcopy(model).eval().requires_grad_(False) for name, model in models.items()}

    @torch.no_grad()
    def update(self, models: Mapping[str, torch.nn.Module]) -> None:
        """Move the averages towards the current weights."""
        self.num_updates += 1
        weight = 1 - min(self.decay, self.num_updates / (self.num_updates + 9))
        for name, mean in self.models.items():
            state = models[name].state_dict()
            for key, value in mean.state_dict().items():  # shares memory with the copy
                if value.is_floating_point():
                    value.lerp_(state[key], weight)
                else:
                    value.copy_(state[key])

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        states = {name: model.state_dict() for name, model in self.models.items()}
        return {"num_updates": self.num_updates, "models": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state back."""
        for name, model in self.models.items():
            model.load_state_dict(state["models"][name])
        self.num_updates = state["num_updates"]
