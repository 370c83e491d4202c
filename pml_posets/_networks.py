"""Networks from outside: where they are, their modes, and what their submodules give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """Where a model is; the CPU for one without weights and buffers."""
    return next((x.device for x in (*model.parameters(), *model.buffers())), torch.device("cpu"))


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards every submodule is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def hooked(modules: Mapping[str, nn.Module], keep: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `keep(name, output)` whenever one of the modules has run inside."""
    hooks = [
        module.register_forward_hook(lambda module, given, output, name=name: keep(name, output))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def submodules(network: nn.Module, names: Sequence[str], what: str) -> dict[str, nn.Module]:
    """The submodules of these names, as in `named_modules`."""
    if isinstance(names, str):
        raise TypeError(f"{what}: give a list of names, got {names!r}")
    known = dict(network.named_modules())
    if unknown := [name for name in names if not (isinstance(name, str) and name and name in known)]:
        raise ValueError(f"{what}, got {unknown[0]!r}: it has {', '.join(name for name in known if name)}")
    return {name: known[name] for name in names}


class ReachedError(Exception):
    """Ends a forward pass at the layer that was asked for."""
