"""Networks that the benchmarks have trained, taken from their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from benchmarks.core.alexnet import AlexNetConfig
from benchmarks.core.trunks import Architecture, TorchvisionConfig, settings
from pml_posets.training.checkpoints import load_checkpoint


def config_of(path: str | Path) -> AlexNetConfig:
    """The shapes of the AlexNet in a checkpoint that a benchmark wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or holds no AlexNet of the benchmarks.
    """
    config = architecture_of(path)
    if not isinstance(config, AlexNetConfig):
        raise ValueError(f"the checkpoint {path} is of a {config.trunk}: give one of --trunk alexnet")
    return config


def architecture_of(path: str | Path) -> Architecture:
    """The shapes of the network in a checkpoint that a benchmark wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or holds no network of the benchmarks.
    """
    found = load_checkpoint(path)["settings"]
    trunk = found.get("your trunk", "alexnet")  # older checkpoints do not say
    if trunk != "alexnet":
        return TorchvisionConfig(trunk, found["your image_size"], found["your fc_dim"])
    names = ("image_size", "batch_norm", "stem_stride", "fc_dim")
    missing = [name for name in names if f"your {name}" not in found]
    if missing:
        raise ValueError(
            f"the checkpoint {path} is of no benchmark's AlexNet ({', '.join(missing)} missing): give the "
            "checkpoint.pt of a method that learns, from the --output of a benchmark"
        )
    return AlexNetConfig(**{name: found[f"your {name}"] for name in names})


def load_trained(models: Mapping[str, nn.Module], path: str | Path) -> None:
    """Put the weights of a checkpoint into the models: their moving average where the run kept one.

    Args:
        models: of `trunks.build`, of the shapes that `architecture_of` says, or a "trunk" alone. They stay as
            they were if the file does not fit.
        path: checkpoint.pt of a run.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or of another architecture.
    """
    content = load_checkpoint(path)
    kept = content["average"] or content["parts"]
    parts: dict[str, dict[str, torch.Tensor]] = {}
    wrong: list[str] = []
    for name, model in models.items():
        state = kept["models"][name]
        if name == "trunk":  # it stands behind the augmentation there
            state = {key[2:]: value for key, value in state.items() if key.startswith("1.")}
        expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        found = {key: tuple(value.shape) for key, value in state.items()}
        wrong += [f"{name} {k}" for k in sorted(expected | found) if expected.get(k) != found.get(k)]
        parts[name] = state
    if wrong:
        there = ", ".join(f"{name} {value}" for name, value in settings(architecture_of(path)).items())
        raise ValueError(
            f"the checkpoint {path} is of another architecture, it differs at {', '.join(wrong[:3])}: "
            f"its network has {there}"
        )
    for name, model in models.items():
        model.load_state_dict(parts[name])
