"""Fine-tuning of pretrained networks: learning rates by layer, frozen parts, frozen batch norm, warm-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from .._validation import as_count, as_real, check_module

__all__ = ["freeze_batch_norm", "parameter_groups", "warm_up"]


def parameter_groups(
    module: nn.Module,
    lr: float,
    rates: Mapping[str, float] | None = None,
    freeze: Sequence[str] = (),
    weight_decay: float = 0.0,
    batch_norm: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer of torch, by patterns of parameter names.

    Frozen parameters are in no group and get `requires_grad=False`; all others get True. Biases and
    parameters of normalization layers (one dimension or none) are not decayed.

    Args:
        module: the network.
        lr: learning rate, above 0.
        rates: pattern (as of a shell: "*" and "?") to a factor of lr from 0; 0 freezes. The first pattern
            that matches a name counts. Default: 1 for all.
        freeze: patterns of parameters that are not trained. Default: none.
        weight_decay: of weights with two or more dimensions, from 0. Default 0.
        batch_norm: False (default): as `freeze_batch_norm`; True: batch norm is trained.

    Returns:
        Dicts with params, lr and weight_decay, in the order in which the parameters appear.

    Raises:
        TypeError: for no module, or a single pattern that is in no list.
        ValueError: for a pattern that matches no parameter, a number out of range, or nothing to train.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> groups = parameter_groups(network, 1e-3, rates={"2.*": 10}, freeze=["0.bias"])
        >>> [(len(group["params"]), group["lr"]) for group in groups]
        [(1, 0.001), (2, 0.01)]
    """
    check_module(module, "module")
    if freeze is None or isinstance(freeze, str):
        raise TypeError(f"freeze must be a list of patterns, got {freeze!r}")
    base = as_real(lr, "lr", low=0, open_low=True)
    decay = as_real(weight_decay, "weight_decay", low=0)
    factors = {pattern: as_real(rate, f"rate of {pattern}", low=0) for pattern, rate in (rates or {}).items()}
    names = [name for name, _ in module.named_parameters()]
    for pattern in (*factors, *freeze):
        if not any(fnmatchcase(name, pattern) for name in names):
            some = ", ".join(names[:5])
            raise ValueError(f"the pattern {pattern!r} matches no parameter: they are named {some}, ...")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        rate = next((rate for pattern, rate in factors.items() if fnmatchcase(name, pattern)), 1.0)
        trained = rate > 0 and not any(fnmatchcase(name, pattern) for pattern in freeze)
        parameter.requires_grad_(trained)
        if trained:
            groups.setdefault((base * rate, decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    if not batch_norm:
        fixed = {id(parameter) for parameter in freeze_batch_norm(module)}
        groups = {key: [p for p in group if id(p) not in fixed] for key, group in groups.items()}
    found = ((params, *key) for key, params in groups.items() if params)
    result = [dict(zip(("params", "lr", "weight_decay"), group, strict=True)) for group in found]
    if not result:
        raise ValueError("every parameter is frozen: leave some to train")
    return result


def freeze_batch_norm(module: nn.Module) -> list[nn.Parameter]:
    """Keep the statistics and parameters of all batch norm layers as they are, in training mode too.

    Args:
        module: the network. A forward hook puts these layers into evaluation mode, whatever the trainer sets.

    Returns:
        The parameters that were frozen.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        >>> len(freeze_batch_norm(network))
        2
        >>> _ = network.train()(torch.rand(2, 3, 4, 4))
        >>> network[1].running_mean.tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    frozen = []
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            if _evaluate not in layer._forward_pre_hooks.values():
                layer.register_forward_pre_hook(_evaluate)
            for parameter in layer.parameters():
                parameter.requires_grad_(False)
                frozen.append(parameter)
    return frozen


def warm_up(optimizer: torch.optim.Optimizer, num_iterations: int) -> torch.optim.lr_scheduler.LambdaLR:
    """A scheduler that raises the learning rates linearly to their values, then leaves them.

    Args:
        optimizer: whose rates to raise.
        num_iterations: n, from 1: iteration i, from 0, has the rate times min(1, (i + 1) / n).

    Returns:
        The scheduler; in trainers of pytorch-metric-learning give it as "trunk_scheduler_by_iteration".

    Example:
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> scheduler = warm_up(optimizer, 4)
        >>> optimizer.param_groups[0]["lr"]
        0.25
    """
    length = as_count(num_iterations, "num_iterations")
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / length))


def _evaluate(layer: nn.Module, given: Any) -> None:
    layer.training = False
