"""Instance discrimination by noise-contrastive estimation, against a memory of all samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .._batch_checks import as_indices, check_batch, check_width
from .._random import derive_seeds
from .._validation import as_count, as_real
from ._networks import at_least_float32

__all__ = ["MemoryBankNCE"]


class MemoryBankNCE(nn.Module):
    """Each sample is a class of its own: its embedding must be distinguished from those of random others.

        P(j | f) = exp(v_j^T f / t) / Z,      h(j, f) = P(j | f) / (P(j | f) + m / N)
        L(f_i)   = -log h(i, f_i) - sum over m random j of log(1 - h(j, f_i))

    with f normalized and v_j the memory of sample j, without gradient: in training mode v_i then becomes
    normalize(mu v_i + (1 - mu) f_i), f_i the mean of its embeddings in the batch. Z is estimated from the
    random samples of the first call in training mode, and stays. The m random samples are drawn from all N
    with repeats, by torch's global generator of the CPU, once for the whole batch.

    Memory and Z travel in the state dict (N x D float32), not as parameters or buffers, so that PML's logs
    leave them out; the memory follows the device of the embeddings.

    Args:
        num_samples: N, the samples of the dataset.
        dim: D, the width of the embeddings. Default 128, the published value.
        num_negatives: m, at least 1; may exceed N. Default 4096, the published value.
        momentum: mu, in [0, 1). Default 0.5, the published value.
        temperature: t, above 0. Default 0.5 (0.35 to 1.0 in the paper).
        seed: of the memory's start, from 0. Default 0.

    Shapes: embeddings (B, D) floating point, indices (B,) dataset indices -> a scalar of at least 32 bits,
    the mean over the batch; without samples 0, with a gradient path. Half precision and autocast are computed
    in float32.

    Raises:
        TypeError, ValueError: for invalid options, embeddings or indices, or a state of another size.

    Source: "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018).
    Differs from the paper: one draw of random samples serves the batch, where each sample had its own.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> loss = MemoryBankNCE(num_samples=50, dim=8, num_negatives=20)
        >>> x = torch.randn(6, 8)
        >>> values = [loss(x, torch.arange(6)).item() for _ in range(5)]
        >>> values[-1] < values[0]  # the memory has come nearer
        True
    """

    def __init__(
        self,
        num_samples: int,
        dim: int = 128,
        num_negatives: int = 4096,
        momentum: float = 0.5,
        temperature: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_samples, self.dim = as_count(num_samples, "num_samples"), as_count(dim, "dim")
        self.num_negatives = as_count(num_negatives, "num_negatives")
        self.momentum = as_real(momentum, "momentum", low=0, high=1, open_high=True)
        self.temperature = as_real(temperature, "temperature", low=0, open_low=True)
        generator = torch.Generator().manual_seed(derive_seeds(as_count(seed, "seed", 0))[0])
        self._memory = F.normalize(torch.randn(self.num_samples, self.dim, generator=generator))  # (N, D)
        self._log_z: float | None = None

    @property
    def memory(self) -> torch.Tensor:
        """(N, D) float32, unit rows, in dataset order."""
        return self._memory

    def forward(self, embeddings: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """The mean loss of the batch; in training mode the memory then takes the embeddings up."""
        check_batch(embeddings, None)
        rows = as_indices(indices, self.num_samples, len(embeddings)).to(embeddings.device)
        check_width("embeddings", embeddings, self.dim, "the memory")
        if not len(embeddings):
            return at_least_float32(embeddings).sum()
        self._memory = self._memory.to(embeddings.device)
        drawn = torch.randint(self.num_samples, (self.num_negatives,)).to(embeddings.device)  # (m,)
        with torch.autocast(embeddings.device.type, enabled=False):
            f = F.normalize(at_least_float32(embeddings))  # (B, D)
            memory = self._memory.to(f.dtype)
            own = (f * memory[rows]).sum(dim=1) / self.temperature  # (B,)
            others = f @ memory[drawn].T / self.temperature  # (B, m)
            shift = self._log_of_z(others) + math.log(self.num_negatives / self.num_samples)
            losses = F.softplus(shift - own) + F.softplus(others - shift).sum(dim=1)  # (B,)
        if self.training:
            self._remember(f.detach(), rows)
        return losses.mean()

    def _log_of_z(self, others: torch.Tensor) -> float:
        """log Z, of these (B, m) exponents unless it is fixed already."""
        if self._log_z is not None:
            return self._log_z
        mean = others.detach().flatten().logsumexp(dim=0) - math.log(others.numel())
        log_z = float(mean) + math.log(self.num_samples)
        self._log_z = log_z if self.training else None
        return log_z

    def _remember(self, f: torch.Tensor, indices: torch.Tensor) -> None:
        rows, which, counts = indices.unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(len(rows), self.dim, device=f.device).index_add(0, which, f.float())
        old = self._memory[rows]
        self._memory[rows] = F.normalize(self.momentum * old + (1 - self.momentum) * sums / counts[:, None])

    def get_extra_state(self) -> dict[str, Any]:
        return {"memory": self._memory, "log_z": self._log_z}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        memory = state["memory"]
        if memory.shape != self._memory.shape:
            shapes = f"{tuple(memory.shape)}, samples by width, this one is {tuple(self._memory.shape)}"
            raise ValueError(f"the memory of the state is {shapes}: it belongs to another dataset or head")
        self._memory = memory.detach().to(self._memory, copy=True)
        self._log_z = state["log_z"]

    def extra_repr(self) -> str:
        names = ("num_samples", "dim", "num_negatives", "momentum", "temperature")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
