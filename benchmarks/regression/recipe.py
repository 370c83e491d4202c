"""What a DeepPose result depends on: presets, networks to begin from. Nothing here imports torch at first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from benchmarks.core.recipes import AlexNetConfig

SHAPE: dict[str, dict[str, Any]] = {  # of the network, by preset
    "paper": {},
    "small": {"image_size": 64, "batch_norm": True, "fc_dim": 1024},
    "figures": {"image_size": 64, "batch_norm": True, "fc_dim": 1024},
    "tiny": {"image_size": 64, "batch_norm": True, "fc_dim": 64},
}


@dataclass(frozen=True)
class PoseRecipe:
    """Every choice of a training, beside the network's shapes and its first weights.

    Args:
        iterations: steps.
        batch_size: people in a batch, at least 2.
        lr: learning rate of all layers, above 0.
        optimizer: "adamw", "adagrad" or "sgd" (with momentum 0.9).
        schedule: of the learning rate: "constant", or "cosine" with a short warm-up.
        weight_decay: from 0.
        dropout: before fc6 and fc7, in [0, 1).
        freeze: iterations at the beginning in which the convolutions stay as they are.
        scale: range of the magnification of a person, both above 0.
        shift: largest shift of a person to any side, as a share of the image, in [0, 1].
        mean_pose: begin from the mean of the labeled poses and their mirror images, not from the middle.
        precision: "float32", or "bfloat16" (mixed).

    Raises:
        ValueError: for a value out of its range; the message names the option of the command line.

    Source: section 4.1.2. The authors' public code has 1,000,000 iterations, batches of 128, Adagrad at 5e-4,
        dropout 0.6, mirror images, shifts of 0.1; convolutions frozen for 10,000 iterations where they come
        from ImageNet.
    Differs from the paper: its code enlarges the joints' box by 1.5 to 2, each side on its own; here a crop
        of 1.3 is magnified as a whole. The presets but "paper" are ours, and so is the mean pose.
    """

    iterations: int = 1000
    batch_size: int = 128
    lr: float = 1e-3
    optimizer: Literal["adamw", "adagrad", "sgd"] = "adamw"
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 1e-4
    dropout: float = 0.2
    freeze: int = 0
    scale: tuple[float, float] = (0.8, 1.1)
    shift: float = 0.05
    mean_pose: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        from pml_posets._validation import as_count, as_real

        for name, least in (("iterations", 1), ("batch_size", 2), ("freeze", 0)):
            as_count(getattr(self, name), f"--{name.replace('_', '-')}", least)
        as_real(self.lr, "--lr", low=0, open_low=True)
        as_real(self.weight_decay, "--weight-decay", low=0)
        as_real(self.dropout, "--dropout", low=0, high=1, open_high=True)
        as_real(self.shift, "--shift", low=0, high=1)
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"--scale must be two numbers above 0, LOW and HIGH, got {self.scale}")

    def settings(self) -> dict[str, Any]:
        """Every value, as plain ones, for results and checkpoints."""
        return {**asdict(self), "scale": list(self.scale)}


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **{"iterations": 1_000_000, "lr": 5e-4, "optimizer": "adagrad", "schedule": "constant"},
        **{"weight_decay": 0.0, "dropout": 0.6, "shift": 0.1, "mean_pose": False},
    },
    "small": {},
    "figures": {"iterations": 200, "batch_size": 64},
    "tiny": {"iterations": 4, "batch_size": 16},
}


@dataclass(frozen=True)
class Init:
    """What a regressor begins from.

    Args:
        name: in the tables and the folders.
        kind: random weights, a checkpoint.pt of a benchmark, or torchvision's ImageNet weights.
        path: of the file; None for random weights.
    """

    name: str
    kind: Literal["random", "posets", "imagenet"]
    path: Path | None = None

    def shape(self, shape: AlexNetConfig) -> AlexNetConfig:
        """The network's shapes: those of the run; torchvision's own for its weights."""
        return type(shape)() if self.kind == "imagenet" else shape

    def models(self, shape: AlexNetConfig, layers: str, seed: int, dropout: float) -> dict[str, nn.Module]:
        """An AlexNet whose layers up to `layers` are those of the file, and the others random.

        Args:
            shape: of the run.
            layers: the last one that is taken from the file.
            seed: of the random weights.
            dropout: before fc6 and fc7.

        Raises:
            FileNotFoundError, ValueError: for a file that is not there, damaged, or of other shapes.
        """
        from benchmarks.core import networks

        shape = self.shape(shape)
        models = networks.build(shape, seed, dropout)
        if self.path is None:
            return models
        given = networks.build(shape, seed)
        if self.kind == "imagenet":
            networks.load_imagenet(given, shape, self.path)
        else:
            networks.load_trained(given if layers != "pool5" else {"trunk": given["trunk"]}, self.path)
        for part, theirs in zip(_up_to(models, layers), _up_to(given, layers), strict=True):
            part.load_state_dict(theirs.state_dict())
        return models


def _up_to(models: Mapping[str, nn.Module], layers: str) -> list[nn.Module]:
    """The parts of an AlexNet up to a layer."""
    embedder = models["embedder"]
    rest = {"pool5": [], "fc6": [embedder.get_submodule("fc6")], "fc7": [embedder]}
    return [models["trunk"], *rest[layers]]
