"""The AlexNet of the benchmarks: torchvision's layers, cut where the paper reads its features."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pml_posets._random import preserved_randomness, seed_everything

Layer = Literal["pool5", "fc6", "fc7"]
LAYERS: tuple[Layer, ...] = ("pool5", "fc6", "fc7")


@dataclass(frozen=True)
class AlexNetConfig:
    """What fixes the shapes of an AlexNet, kept in every checkpoint so that another one is refused.

    Args:
        image_size: side of the square input, in pixels, at least 64. Default 227.
        batch_norm: batch normalisation after every convolution and fc6. Default False, as torchvision.
        stem_stride: stride of the first convolution: 4 with torchvision's 11 x 11 kernel, or 2 with a 7 x 7
            kernel. None (default) takes 4 from 128 px up, else 2: stride 4 leaves one cell of a 64-px image.
        fc_dim: width of fc6 and fc7, at least 1. Default 4096.

    Raises:
        ValueError: for a size, stride or width out of these ranges.

    Source: section 4 of the paper; 227 px is the size in the authors' public code.
    Differs from the paper: torchvision's AlexNet, which has fewer filters and no response normalisation;
    batch_norm, stem_stride and fc_dim are options of ours.
    """

    image_size: int = 227
    batch_norm: bool = False
    stem_stride: int | None = None
    fc_dim: int = 4096

    def __post_init__(self) -> None:
        if self.image_size < 64:
            raise ValueError(
                f"AlexNet needs images of at least 64 px, got {self.image_size}: use --image-size 64"
            )
        if self.stem_stride not in (None, 2, 4):
            raise ValueError(f"the stride of the first convolution must be 2 or 4, got {self.stem_stride}")
        if self.fc_dim < 1:
            raise ValueError(f"fc6 and fc7 must be at least 1 wide, got {self.fc_dim}: try --fc-dim 4096")

    @property
    def stride(self) -> int:
        """Stride of the first convolution."""
        return self.stem_stride or (4 if self.image_size >= 128 else 2)

    @property
    def grid(self) -> int:
        """Side of the pool5 map: 6 at 227 px, as torchvision's; the map's own size where that is smaller."""
        side = (self.image_size + 4 - (11 if self.stride == 4 else 7)) // self.stride + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1
        return max(1, min(6, side))


class Trunk(nn.Module):
    """Convolutions of AlexNet up to pool5, flattened: (B, 3, S, S) -> (B, 256 * grid^2)."""

    def __init__(self, config: AlexNetConfig) -> None:
        super().__init__()
        stride = config.stride
        first = nn.Conv2d(3, 64, kernel_size=11 if stride == 4 else 7, stride=stride, padding=2)
        convolutions = [
            (first, True),
            (nn.Conv2d(64, 192, kernel_size=5, padding=2), True),
            (nn.Conv2d(192, 384, kernel_size=3, padding=1), False),
            (nn.Conv2d(384, 256, kernel_size=3, padding=1), False),
            (nn.Conv2d(256, 256, kernel_size=3, padding=1), True),
        ]
        layers: list[nn.Module] = []
        for convolution, pooled in convolutions:
            layers.append(convolution)
            if config.batch_norm:
                layers.append(nn.BatchNorm2d(convolution.out_channels))
            layers.append(nn.ReLU(inplace=True))
            if pooled:
                layers.append(nn.MaxPool2d(kernel_size=3, stride=2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(config.grid)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) normalised images -> (B, 256 * grid^2)."""
        images = images.contiguous(memory_format=torch.channels_last)  # a third faster on a CPU
        return self.pool(self.features(images)).flatten(1)


class Embedder(nn.Module):
    """fc6 and fc7 of AlexNet: (B, 256 * grid^2) -> (B, fc_dim), fc7 before its ReLU."""

    def __init__(self, config: AlexNetConfig, dropout: float = 0.5) -> None:
        super().__init__()
        norm: list[nn.Module] = [nn.BatchNorm1d(config.fc_dim)] if config.batch_norm else []
        self.fc6 = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * config.grid**2, config.fc_dim),
            *norm,
            nn.ReLU(inplace=True),
        )
        self.fc7 = nn.Sequential(nn.Dropout(dropout), nn.Linear(config.fc_dim, config.fc_dim))

    def forward(self, pool5: torch.Tensor) -> torch.Tensor:
        """(B, 256 * grid^2) -> (B, fc_dim)."""
        return self.fc7(self.fc6(pool5))


def build(config: AlexNetConfig, seed: int, dropout: float = 0.5) -> dict[str, nn.Module]:
    """A new AlexNet with random weights, as the models of a PML trainer.

    Args:
        config: the shapes.
        seed: of the weights (He's initialisation of the convolutions, torch's default of the rest).
        dropout: before fc6 and fc7, in [0, 1).

    Returns:
        {"trunk": (B, 3, S, S) -> pool5, "embedder": pool5 -> fc7}. The trunk's weights depend on nothing
        but the seed and the shape of its first convolution, whatever fc_dim is. Torch's global generator
        stays as it was.

    Raises:
        ValueError: for dropout out of its range.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in 0..1, below 1, got {dropout}: try 0.5")
    with preserved_randomness(accelerators=False):
        seed_everything(seed, accelerators=False)
        trunk = Trunk(config)
        for module in trunk.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        embedder = Embedder(config, dropout)
    return {"trunk": trunk.to(memory_format=torch.channels_last), "embedder": embedder}


def up_to(models: Mapping[str, nn.Module], layer: Layer) -> nn.Module:
    """The network cut after a layer, sharing the weights of the models.

    Args:
        models: of `build`.
        layer: pool5, fc6 (after its ReLU) or fc7 (before its ReLU, as the losses see it).

    Returns:
        A module, images (B, 3, S, S) -> (B, D) features.

    Raises:
        ValueError: for another layer.
    """
    if layer not in LAYERS:
        raise ValueError(f"layer must be one of {', '.join(LAYERS)}, got {layer!r}")
    if layer == "pool5":
        return models["trunk"]
    embedder = models["embedder"]
    return nn.Sequential(models["trunk"], embedder.get_submodule("fc6") if layer == "fc6" else embedder)


def load_imagenet(models: Mapping[str, nn.Module], path: str | Path) -> None:
    """Put torchvision's ImageNet weights of AlexNet, from a local file, into the models.

    Args:
        models: of `build` with the default shapes (227 or 224 px, no batch norm, fc_dim 4096). They stay as
            they were if the file does not fit.
        path: a state_dict as torchvision publishes it (`alexnet-owt-7be5be79.pth`); its last layer, that of
            the thousand classes, is left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no file of weights, or one of another architecture.
    """
    state = read_weights(path, "torchvision's AlexNet (alexnet-owt-7be5be79.pth)")
    parts: dict[str, dict[str, torch.Tensor]] = {
        "trunk": {key: value for key, value in state.items() if key.startswith("features.")},
        "embedder": {
            key.replace(theirs, ours, 1): value
            for key, value in state.items()
            for ours, theirs in (("fc6.1.", "classifier.1."), ("fc7.1.", "classifier.4."))
            if key.startswith(theirs)
        },
    }
    wrong: list[str] = []
    for model, part in parts.items():
        expected = {key: tuple(value.shape) for key, value in models[model].state_dict().items()}
        found = {key: tuple(value.shape) for key, value in part.items()}
        wrong += [k for k in sorted(expected | found) if expected.get(k) != found.get(k)]
    if wrong:
        raise ValueError(
            f"{path} does not fit this AlexNet at {', '.join(wrong[:4])}: torchvision's weights need "
            "--image-size 227, --fc-dim 4096 and no batch norm"
        )
    for model, part in parts.items():
        models[model].load_state_dict(part)


def read_weights(path: str | Path, whose: str) -> dict[str, torch.Tensor]:
    """A state_dict from a local file.

    Args:
        path: the file.
        whose: what it should be, for messages.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or no file of weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no ImageNet weights at {path}: give the local file of {whose}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged or no file of weights ({reason}): download it anew") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no state_dict: give the file as torchvision publishes it")
    return state


def settings(config: AlexNetConfig) -> dict[str, Any]:
    """The configuration as plain values, for results and checkpoints."""
    return {**asdict(config), "stem_stride": config.stride, "grid": config.grid}


def num_parameters(models: Mapping[str, nn.Module]) -> int:
    """Number of trainable numbers of all models together."""
    return sum(math.prod(p.shape) for m in models.values() for p in m.parameters() if p.requires_grad)
