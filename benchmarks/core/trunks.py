"""Trunks of torchvision beside the benchmarks' AlexNet, each with its embedder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from benchmarks.core import alexnet
from benchmarks.core.alexnet import AlexNetConfig
from pml_posets._random import preserved_randomness, seed_everything
from pml_posets.methods._networks import conv_maps

TrunkName = Literal["alexnet", "googlenet", "resnet18", "resnet50"]
TRUNKS: tuple[TrunkName, ...] = get_args(TrunkName)
Layer = Literal["pool5", "fc6", "fc7", "pooled", "embedding"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
FILES = {  # torchvision's ImageNet weights, for messages
    "googlenet": "googlenet-1378be20.pth",
    "resnet18": "resnet18-f37072fd.pth",
    "resnet50": "resnet50-0676ba61.pth",
}
_HEADS = ("fc.", "aux1.", "aux2.")  # of the thousand classes
_COUNTERS = ".num_batches_tracked"  # which files of old do not have


@dataclass(frozen=True)
class TorchvisionConfig:
    """What fixes the shapes of a trunk of torchvision with a linear embedder.

    Args:
        trunk: "googlenet", "resnet18" or "resnet50".
        image_size: side of the square input, in pixels, at least 32. Default 227.
        fc_dim: width of the embedding, at least 1. Default 512, as published for retrieval.

    Raises:
        ValueError: for a size or width out of these ranges, another trunk.

    Source: "Unsupervised Deep Metric Learning via Auxiliary Rotation Loss" (2019): GoogLeNet, its pooled
    feature, a linear embedding of 512; "Representation Learning for Clustering via Building Consensus"
    (2021): ResNets, with a stem for small images.
    Differs from the paper: batch normalisation always learns its statistics (there they are fixed).
    """

    trunk: Literal["googlenet", "resnet18", "resnet50"]
    image_size: int = 227
    fc_dim: int = 512

    def __post_init__(self) -> None:
        if self.trunk not in FILES:
            raise ValueError(f"--trunk must be one of {', '.join(TRUNKS)}, got {self.trunk!r}")
        if self.image_size < 32:
            raise ValueError(
                f"{self.trunk} needs images of at least 32 px, got {self.image_size}: use --image-size 32"
            )
        if self.fc_dim < 1:
            raise ValueError(f"the embedding must be at least 1 wide, got {self.fc_dim}: try --fc-dim 512")

    @property
    def small_stem(self) -> bool:
        """A ResNet for images below 64 px begins with a 3 x 3 convolution of stride 1 and no pooling."""
        return self.trunk != "googlenet" and self.image_size < 64


Architecture: TypeAlias = AlexNetConfig | TorchvisionConfig


class TorchvisionTrunk(nn.Module):
    """The convolutions of a network of torchvision and the mean over their maps: (B, 3, S, S) -> (B, D).

    Attributes:
        features: the convolutions; their output are the last maps, (B, D, H, W).
        dim: D, 1024 of GoogLeNet, 512 and 2048 of ResNet-18 and -50.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, config: TorchvisionConfig) -> None:
        super().__init__()
        from torchvision import models

        options: dict[str, Any] = {"weights": None}
        if config.trunk == "googlenet":
            options |= {"aux_logits": False, "init_weights": False}
        network = getattr(models, config.trunk)(**options)
        if config.small_stem:
            network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            network.maxpool = nn.Identity()
        self.dim = int(network.fc.in_features)
        self.features = nn.Sequential()
        for name, part in network.named_children():
            if name not in ("avgpool", "dropout", "fc"):
                self.features.add_module(name, part)
        # GoogLeNet's weights are for pixels in [-1, 1], not for those normalised by ImageNet's statistics.
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        google = config.trunk == "googlenet"
        self.register_buffer("scale", 2 * std if google else torch.ones(3), persistent=False)
        self.register_buffer("shift", 2 * mean - 1 if google else torch.zeros(3), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) normalised images -> (B, D)."""
        images = images * self.scale[:, None, None] + self.shift[:, None, None]
        images = images.contiguous(memory_format=torch.channels_last)  # faster on a CPU
        return self.features(images).mean(dim=(2, 3))


def build(config: Architecture, seed: int, dropout: float = 0.5) -> dict[str, nn.Module]:
    """A new network with random weights, as the models of a PML trainer.

    Args:
        config: the shapes.
        seed: of the weights (He's initialisation of the convolutions, torch's default of the rest).
        dropout: before AlexNet's fc6 and fc7, or the linear embedder of the others; in [0, 1).

    Returns:
        {"trunk": (B, 3, S, S) -> (B, D), "embedder": (B, D) -> (B, fc_dim)}. Torch's global generator stays
        as it was.

    Raises:
        ValueError: for dropout out of its range.
    """
    if isinstance(config, AlexNetConfig):
        return alexnet.build(config, seed, dropout)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in 0..1, below 1, got {dropout}: try 0.5")
    with preserved_randomness(accelerators=False):
        seed_everything(seed, accelerators=False)
        trunk = TorchvisionTrunk(config)
        for module in trunk.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        embedder = nn.Sequential(nn.Dropout(dropout), nn.Linear(trunk.dim, config.fc_dim))
    return {"trunk": trunk.to(memory_format=torch.channels_last), "embedder": embedder}


def settings(config: Architecture) -> dict[str, Any]:
    """The configuration as plain values, for results and checkpoints."""
    if isinstance(config, AlexNetConfig):
        return {"trunk": "alexnet", **alexnet.settings(config)}
    return {**asdict(config), "small_stem": config.small_stem}


def up_to(models: Mapping[str, nn.Module], layer: Layer) -> nn.Module:
    """The network cut after a layer, sharing the weights of the models.

    Args:
        models: of `build`.
        layer: "pooled", the trunk's output (AlexNet's pool5), "embedding", the embedder's (AlexNet's fc7), or
            one of AlexNet's own.

    Returns:
        A module, images (B, 3, S, S) -> (B, D) features.

    Raises:
        ValueError: for a layer that the network does not have.
    """
    if layer == "pooled":
        return models["trunk"]
    if layer == "embedding":
        return nn.Sequential(models["trunk"], models["embedder"])
    return alexnet.up_to(models, layer)


def load_imagenet(models: Mapping[str, nn.Module], config: Architecture, path: str | Path) -> None:
    """Put torchvision's ImageNet weights, from a local file, into the trunk (of AlexNet the embedder too).

    Args:
        models: of `build` with this config; they stay as they were if the file does not fit.
        config: the shapes: torchvision's.
        path: a state_dict as torchvision publishes it; what belongs to the thousand classes is left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no file of weights, or one of another architecture.
    """
    if isinstance(config, AlexNetConfig):
        return alexnet.load_imagenet(models, path)
    state = alexnet.read_weights(path, f"torchvision's {config.trunk} ({FILES[config.trunk]})")
    part = {f"features.{key}": value for key, value in state.items() if not key.startswith(_HEADS)}
    expected, found = (
        {key: tuple(value.shape) for key, value in one.items() if not key.endswith(_COUNTERS)}
        for one in (models["trunk"].state_dict(), part)
    )
    wrong = [key for key in sorted(expected | found) if expected.get(key) != found.get(key)]
    if wrong:
        hint = ", which need --image-size 64 or more" if config.small_stem else ""
        raise ValueError(
            f"{path} does not fit {config.trunk} at {', '.join(wrong[:4])}: give torchvision's weights "
            f"({FILES[config.trunk]}){hint}"
        )
    models["trunk"].load_state_dict(part)


def feature_dim(models: Mapping[str, nn.Module]) -> int:
    """D, the width of the trunk's output."""
    return next(m.in_features for m in models["embedder"].modules() if isinstance(m, nn.Linear))


def maps_layer(trunk: nn.Module) -> str:
    """Name of the trunk's submodule whose output are the last maps, before any pooling of them."""
    if isinstance(trunk, alexnet.Trunk):
        return f"features.{len(trunk.features) - 2}"  # before the last max-pooling
    return "features"


@torch.no_grad()
def maps_size(trunk: nn.Module, image_size: int) -> tuple[int, int]:
    """Height and width of the last maps of images of this size; the trunk stays as it was."""
    mode, parameter = trunk.training, next(trunk.parameters())
    try:
        maps = conv_maps(
            trunk.eval(), torch.zeros(1, 3, image_size, image_size).to(parameter), maps_layer(trunk)
        )
    finally:
        trunk.train(mode)
    return int(maps.shape[2]), int(maps.shape[3])
