"""Frozen networks at their best: pooled outputs of several layers, each partly whitened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from .._networks import device_of, hooked, in_eval_mode, submodules
from .._validation import as_count, as_real
from ._rows import LinearStep

__all__ = ["LayerOutputs", "PartialWhitening", "choose_layers"]

_WIDE = 4096  # columns; beyond, all directions of the covariance take minutes and more


class LayerOutputs(nn.Module):
    """Outputs of several layers of a network in one pass, each pooled to a vector, side by side.

    Maps (B, C, H, W) are averaged over their positions, tokens (B, T, C) over the tokens; vectors stay. For
    `extract`, which reads one layer as it is.

    Args:
        network: the module.
        layers: names of its submodules, as in `named_modules`.

    Attributes:
        widths: columns of each layer, in the order of `layers`; empty before the first call.

    Shapes: whatever the network takes -> (B, sum of the widths) float32.

    Raises:
        ValueError: for a name that the network does not have, or, when called, a layer that did not run.
        TypeError: when called, for an output that is no tensor of 2 to 4 dimensions.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3))
        >>> outputs = LayerOutputs(network, ["1", "2"])
        >>> outputs(torch.zeros(2, 3, 8, 8)).shape, outputs.widths
        (torch.Size([2, 10]), [4, 6])
    """

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        if not layers:
            raise ValueError("layers must name at least one submodule of the network, got none")
        submodules(network, layers, "layers must be submodules of the network")
        self.network, self.layers = network, list(layers)
        self.widths: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The pooled outputs of a batch."""
        outputs: dict[str, Any] = {}
        with hooked(submodules(self.network, self.layers, "layers must be submodules"), outputs.__setitem__):
            self.network(images)
        if missing := [name for name in self.layers if name not in outputs]:
            raise ValueError(f"layer {missing[0]!r} takes no part in the network's forward pass")
        parts = [_pooled(outputs[name], name) for name in self.layers]
        self.widths = [part.shape[1] for part in parts]
        return torch.cat(parts, dim=1)


@dataclass(eq=False, repr=False)
class PartialWhitening(LinearStep):
    """Principal directions, each coordinate divided by its standard deviation to a power p.

        f(x) = diag(s)^-p V^T (x - mu),    covariance of x = V diag(s^2) V^T

    p = 0 is PCA, p = 1 PCA whitening, which helps fine classes and amplifies noise: what suits search with
    features of a pretrained network lies between. Few directions (below a quarter of N and D) of more than
    4096 columns are estimated by a randomized decomposition, which gives the same each time.

    Args:
        num_components: directions to keep, at most, from 1; no more than D or N - 1. Default 256.
        power: p, in 0..1. Default 0.75.
        normalize: scale rows to unit length. Default True.

    Attributes:
        mean_: (D,) float32.
        weight_: (K, D) float32.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(200, 3)) * [4, 1, 0.01]
        >>> PartialWhitening(2, power=1, normalize=False).fit_transform(rows).std(0).round(2).tolist()
        [1.0, 1.0]
    """

    num_components: int = 256
    power: float = 0.75
    normalize: bool = True

    def fit(self, features: ArrayLike, y: Any = None) -> PartialWhitening:
        """Learn mean and directions of (N, D) features.

        Raises:
            ValueError: for fewer than two rows, rows that are all equal or an argument out of range.
        """
        rows = self._rows_to_fit(features)
        power = as_real(self.power, "power", low=0, high=1)
        mean = rows.mean(0, dtype=np.float64)
        centered = rows - mean.astype(np.float32)
        count = as_count(self.num_components, "num_components")
        values, vectors = _principal_directions(centered, count)
        rank = int((values > 1e-7 * max(values[0], 0)).sum())
        if len(rows) < 2 or values[0] <= 0 or rank == 0:
            raise ValueError(f"features must be two different rows at least, got {len(rows)} rows")
        kept = min(count, rank, len(rows) - 1)
        self.mean_ = mean.astype(np.float32)
        weight = (vectors[:, :kept] * values[:kept] ** (-power / 2)).T
        self.weight_ = np.ascontiguousarray(weight, np.float32)
        return self


def _principal_directions(centered: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Variances, largest first, and directions (D, K) of centered (N, D), K at least min(count, N, D)."""
    num_rows, width = centered.shape
    few = 4 * count < min(num_rows, width)
    if width <= _WIDE or (not few and num_rows >= width):
        values, vectors = np.linalg.eigh((centered.T @ centered).astype(np.float64) / num_rows)
        return values[::-1], vectors[:, ::-1]
    if few:
        from sklearn.utils.extmath import randomized_svd

        _, lengths, rows = randomized_svd(centered, count, n_oversamples=count, n_iter=7, random_state=0)
    else:
        _, lengths, rows = np.linalg.svd(centered, full_matrices=False)
    return lengths.astype(np.float64) ** 2 / num_rows, rows.T


def choose_layers(network: nn.Module, image_size: int, num_blocks: int = 4) -> list[str]:
    """Layers of a network whose pooled outputs together describe an image well.

    Blocks are the outermost modules with submodules of their own inside an `nn.Sequential` or
    `nn.ModuleList`; of a network without any, its single layers. Chosen are `num_blocks` evenly from the
    last third of those that give maps or tokens, and the network's last maps or tokens.

    Args:
        network: a module (B, 3, S, S) -> anything.
        image_size: S, pixels.
        num_blocks: from 1. Default 4.

    Returns:
        Names, in the order in which the layers run.

    Raises:
        ValueError: if no layer gives maps or tokens.

    Example:
        >>> convolutions = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(7)]
        >>> choose_layers(nn.Sequential(*convolutions, nn.Flatten()), image_size=8, num_blocks=2)
        ['4', '6']
    """
    outputs = _spatial_outputs(network, image_size)
    if not outputs:
        raise ValueError("no layer of the network gives maps (B, C, H, W) or tokens: pass layers=")
    modules = dict(network.named_modules())
    blocks = [name for name in outputs if _is_block(name, modules)]
    blocks = [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]
    blocks = blocks or [name for name in outputs if not any(modules[name].children())]
    positions = np.linspace((len(blocks) - 1) * 2 / 3, len(blocks) - 1, as_count(num_blocks, "num_blocks"))
    chosen = list(dict.fromkeys(blocks[position] for position in np.rint(positions).astype(int)))
    last = list(outputs)[-1]
    if not any(outputs[name] is outputs[last] for name in chosen):
        chosen.append(last)
    return chosen


def _spatial_outputs(network: nn.Module, image_size: int) -> dict[str, torch.Tensor]:
    """The maps or tokens of each submodule for a blank image, in the order in which they run last."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str, output: Any) -> None:
        if name and _is_spatial(output):
            outputs.pop(name, None)
            outputs[name] = output

    with in_eval_mode(network), hooked(dict(network.named_modules()), keep):
        network(torch.zeros(1, 3, image_size, image_size, device=device_of(network)))
    return outputs


def _is_block(name: str, modules: dict[str, nn.Module]) -> bool:
    """Whether a module is one of the units that a network repeats: residual, attention, dense blocks."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    parent, module = modules[name.rpartition(".")[0]], modules[name]
    return isinstance(parent, containers) and not isinstance(module, containers) and any(module.children())


def _is_spatial(output: Any) -> bool:
    if not isinstance(output, torch.Tensor):
        return False
    return (output.ndim == 4 and output.shape[2:].numel() > 1) or (output.ndim == 3 and output.shape[1] > 1)


def _pooled(output: Any, name: str) -> torch.Tensor:
    if not isinstance(output, torch.Tensor) or output.ndim not in (2, 3, 4):
        raise TypeError(f"layer {name!r} must give a tensor (B, C), (B, T, C) or (B, C, H, W)")
    output = output.float()
    return output if output.ndim == 2 else output.mean(1) if output.ndim == 3 else output.mean((2, 3))
