"""Random linear maps of embeddings, in which ConCURL looks for the same clusters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from .._random import derive_seeds
from .._validation import as_count

__all__ = ["RandomDiagonals", "RandomProjections", "RandomSpaces"]

_SPACES = 1  # what the derived seed is for; 0 is for the prototypes


class RandomSpaces(nn.Module):
    """Random matrices that are a function of (seed, draw); the state is these two numbers."""

    matrices: torch.Tensor

    def __init__(self, shape: tuple[int, ...], scale: float, seed: int) -> None:
        super().__init__()
        self.shape, self.scale = shape, scale
        self.seed, self.draw = as_count(seed, "seed", least=0), 0
        self.register_buffer("matrices", self._drawn(), persistent=False)

    def redraw(self) -> None:
        """Draw new ones; they replace those before."""
        self.draw += 1
        self.matrices = self._drawn().to(self.matrices)

    def _drawn(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seeds(self.seed, _SPACES, self.draw)[0])
        return torch.randn(self.shape, generator=generator) * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, d) to (M, N, d')."""
        if x.ndim != 2 or x.shape[1] != self.shape[-1]:
            raise ValueError(f"x must have shape (N, {self.shape[-1]}), got {tuple(x.shape)}")
        matrices = self.matrices.to(x)
        return x @ matrices.mT if matrices.ndim == 3 else x * matrices[:, None]

    def get_extra_state(self) -> dict[str, int]:
        """What the matrices are drawn from."""
        return {"seed": self.seed, "draw": self.draw}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        """Draw the matrices of that state again."""
        self.seed, self.draw = int(state["seed"]), int(state["draw"])
        self.matrices = self._drawn().to(self.matrices)

    def extra_repr(self) -> str:
        """What the module's repr says beside its parts."""
        return f"shape={self.shape}, seed={self.seed}, draw={self.draw}"


class RandomProjections(RandomSpaces):
    """M random projections x A_m^T to d' dimensions, the entries of A_m drawn from N(0, 1/d').

    Called with x (N, d), it returns (M, N, d'). `matrices` (M, d', d) float32 get no gradient and are in no
    state dict: they are drawn again from (seed, `draw`), where `draw` counts the calls of `redraw`.

    Args:
        dim: d.
        transform_dim: d'.
        num_transforms: M.
        seed: from 0. Default 0.

    Raises:
        TypeError, ValueError: for sizes that are not counts, x of another width.

    Example:
        >>> spaces = RandomProjections(dim=8, transform_dim=3, num_transforms=5)
        >>> spaces(torch.ones(4, 8)).shape
        torch.Size([5, 4, 3])
    """

    def __init__(self, dim: int, transform_dim: int, num_transforms: int, seed: int = 0) -> None:
        counts = {"num_transforms": num_transforms, "transform_dim": transform_dim, "dim": dim}
        num, reduced, d = (as_count(value, name) for name, value in counts.items())
        super().__init__((num, reduced, d), reduced**-0.5, seed)


class RandomDiagonals(RandomSpaces):
    """M random diagonal matrices: each dimension is scaled by a number drawn from N(0, 1).

    As `RandomProjections`, with `matrices` (M, d), the diagonals, and a result of (M, N, d). The distribution
    of the paper's entries is not known to us.

    Args:
        dim: d.
        num_transforms: M.
        seed: from 0. Default 0.

    Example:
        >>> RandomDiagonals(dim=8, num_transforms=5)(torch.ones(4, 8)).shape
        torch.Size([5, 4, 8])
    """

    def __init__(self, dim: int, num_transforms: int, seed: int = 0) -> None:
        super().__init__((as_count(num_transforms, "num_transforms"), as_count(dim, "dim")), 1.0, seed)
