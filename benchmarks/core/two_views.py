"""Instance discrimination: every sample a class of its own, seen in two augmented views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import BatchSampler

from pml_posets._random import derive_seeds
from pml_posets.posets import Posets


class IndexLoss(nn.Module):
    """A PML loss whose labels are the dataset indices themselves: two views of one sample are a pair."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def bind(self, posets: Posets) -> None:
        """Indices need no posets."""

    def forward(self, embeddings: torch.Tensor, indices: torch.Tensor, *rest: Any) -> torch.Tensor:
        """The inner loss of (B, D) embeddings and (B,) dataset indices."""
        return self.inner(embeddings, indices.to(embeddings.device), *rest)


class TwoViews(BatchSampler):
    """Batches of random samples, each listed twice; batch b is a function of (seed, epoch, b) alone.

    Args:
        num_samples: N.
        batch_size: of the listed indices, even: half as many samples.
        num_batches: in an epoch.
        seed: of the draw, from 0.

    Attributes:
        epoch: number of the next pass, from 0.
    """

    def __init__(self, num_samples: int, batch_size: int, num_batches: int, seed: int) -> None:
        if batch_size < 2 or batch_size % 2:
            raise ValueError(f"batch_size must be even for two views of each sample, got {batch_size}")
        if batch_size // 2 > num_samples:
            raise ValueError(
                f"a batch of two views holds {batch_size // 2} samples, but there are only {num_samples}: "
                "lower batch_size"
            )
        self.num_samples, self.batch_size = num_samples, batch_size
        self.num_batches, self.seed = num_batches, seed
        self.drop_last, self.epoch = True, 0
        every = np.zeros(num_samples, np.int64)
        self._posets = Posets(
            labels=every,
            medoids=every[:1],
            nearest_classes=every[:, None],
            nearest_distances=np.zeros((num_samples, 1), np.float32),
            flips=np.zeros(num_samples, bool),
        )

    @property
    def posets(self) -> Posets:
        """One class that holds every sample, as `JointTrainer` asks for some."""
        return self._posets

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for number in range(self.num_batches):
            rng = np.random.default_rng(derive_seeds(self.seed, epoch, number))
            yield rng.choice(self.num_samples, self.batch_size // 2, replace=False).tolist() * 2

    def regroup(self, features: Any, mirrored: Any = None) -> Posets:
        """There is nothing to group."""
        return self.posets

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """The next epoch."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the next epoch back."""
        self.epoch = state["epoch"]
