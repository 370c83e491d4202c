"""Networks by name, for the command line."""

from __future__ import annotations

import pickle
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

__all__ = ["named_network"]


def named_network(name: str | None, weights: str | None) -> Any:
    """A module from "module:function", or a torchvision or timm name with a file of weights."""
    if name is None:
        return None
    if ":" in name:
        sys.path.insert(0, "")
        module, _, function = name.partition(":")
        network = getattr(import_module(module), function)()
    elif weights is None:
        raise ValueError(f"--network {name} needs --weights FILE: nothing is downloaded")
    else:
        from torchvision.models import get_model, list_models

        if name in list_models():
            network = get_model(name, weights=None)
        elif find_spec("timm") is not None:
            network = import_module("timm").create_model(name, pretrained=False)
        else:
            raise ValueError(
                f"torchvision has no network {name!r}; timm, which may have it, is not installed"
            )
    if not isinstance(network, torch.nn.Module):
        raise TypeError(f"--network {name} must return a torch module, got {type(network).__qualname__}")
    if weights is not None:
        try:
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except (RuntimeError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{weights} is no state dict of --network {name}: {reason}") from error
    return network
