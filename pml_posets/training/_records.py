"""The course of the losses, averaged over some iterations, without waiting for the device at every one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["LossRecord"]


class LossRecord:
    """Sums losses where they are, and makes a row of their means in `rows` `every` few iterations.

    Example:
        >>> record = LossRecord(every=2)
        >>> record.add({"total_loss": torch.tensor(1.0)}, {"iteration": 1})
        >>> record.add({"total_loss": torch.tensor(4.0)}, {"iteration": 2})
        >>> record.rows
        [{'iteration': 2, 'total_loss': 2.5}]
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.rows: list[dict[str, float]] = []
        self._sums: dict[str, Any] = {}
        self._count = 0

    def add(self, losses: Mapping[str, Any], where: Mapping[str, int], last: bool = False) -> None:
        """Take the losses of an iteration; `where` stands in a row beside the means, `last` makes one now."""
        for name, value in losses.items():
            value = value.detach() if isinstance(value, torch.Tensor) else value
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if last or self._count == self.every:
            count, sums = self._count, self.finite_sums(where)
            self.rows.append({**where, **{name: value / count for name, value in sums.items()}})
            self._sums, self._count = {}, 0

    def finite_sums(self, where: Mapping[str, int]) -> dict[str, float]:
        """The sums since the last row; a FloatingPointError if one is NaN or infinite."""
        sums = {name: float(value) for name, value in self._sums.items()}
        for name, value in sums.items():
            if not math.isfinite(value):
                position = ", ".join(f"{key} {number}" for key, number in where.items())
                since = f"in the {self._count} iterations before {position}"
                advice = "lower the learning rate (the last checkpoint is from before)"
                raise FloatingPointError(f"{name} became {value} {since}: {advice}")
        return sums

    def state_dict(self, where: Mapping[str, int]) -> dict[str, Any]:
        """For a checkpoint, which is never made of a run that has become NaN."""
        return {"rows": self.rows, "sums": self.finite_sums(where), "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows, self._sums, self._count = list(state["rows"]), dict(state["sums"]), state["count"]
