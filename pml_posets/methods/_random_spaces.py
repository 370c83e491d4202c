"""Random linear maps of embeddings, in which ConCURL looks for the same clusters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from .._random import derive_seeds
from .._validation import as_count, check_shape

_SPACES = 1  # what the derived seed is for; 0 is for the prototypes


class RandomProjections(nn.Module):
    """M random projections x A_m^T, (N, d) to (M, N, d'), the entries of A_m drawn from N(0, 1/d').

    `matrices`, (M, d', d), get no gradient and are in no state dict: they are drawn again from (seed,
    `draw`), where `draw` counts the calls of `redraw`.

    Args:
        dim, transform_dim, num_transforms: d, d' and M, from 1.
        seed: from 0. Default 0.

    Example:
        >>> RandomProjections(dim=8, transform_dim=3, num_transforms=5)(torch.ones(4, 8)).shape
        torch.Size([5, 4, 3])
    """

    matrices: torch.Tensor

    def __init__(self, dim: int, transform_dim: int, num_transforms: int, seed: int = 0) -> None:
        super().__init__()
        reduced = as_count(transform_dim, "transform_dim")
        shape = as_count(num_transforms, "num_transforms"), reduced, as_count(dim, "dim")
        self._start(shape, reduced**-0.5, seed)

    def _start(self, shape: tuple[int, ...], scale: float, seed: int) -> None:
        self.shape, self.scale = shape, scale
        self.register_buffer("matrices", torch.empty(shape), persistent=False)
        self.set_extra_state({"seed": as_count(seed, "seed", least=0), "draw": 0})

    def redraw(self) -> None:
        """Draw new ones."""
        self.set_extra_state({"seed": self.seed, "draw": self.draw + 1})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All maps of the rows of x."""
        check_shape(x, "x", ("N", self.shape[-1]))
        matrices = self.matrices.to(x)
        return x @ matrices.mT if matrices.ndim == 3 else x * matrices[:, None]

    def get_extra_state(self) -> dict[str, int]:
        return {"seed": self.seed, "draw": self.draw}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        self.seed, self.draw = int(state["seed"]), int(state["draw"])
        generator = torch.Generator().manual_seed(derive_seeds(self.seed, _SPACES, self.draw)[0])
        self.matrices = (torch.randn(self.shape, generator=generator) * self.scale).to(self.matrices)


class RandomDiagonals(RandomProjections):
    """M random diagonal matrices, (N, d) to (M, N, d): dimensions are scaled by numbers from N(0, 1).

    As `RandomProjections`; `matrices`, (M, d), are the diagonals. The distribution of the paper's
    entries is not known to us.

    Args:
        dim, num_transforms: d and M, from 1.
        seed: from 0. Default 0.
    """

    def __init__(self, dim: int, num_transforms: int, seed: int = 0) -> None:
        nn.Module.__init__(self)
        self._start((as_count(num_transforms, "num_transforms"), as_count(dim, "dim")), 1.0, seed)
