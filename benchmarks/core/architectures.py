"""Shapes of the benchmarks' networks, kept in every checkpoint so that another network is refused.

Nothing here imports torch, so that a command line is answered at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

TrunkName = Literal[
    "alexnet", "hog", "googlenet", "resnet18", "resnet50", "efficientnet-lite0", "efficientnet-lite0-postures"
]
TRUNKS: tuple[str, ...] = get_args(TrunkName)
FACTORIES = {  # name to module:function
    "efficientnet-lite0": "benchmarks.core.pretrained:efficientnet_lite0",
    "efficientnet-lite0-postures": "benchmarks.core.pretrained:efficientnet_lite0_postures",
}


@dataclass(frozen=True)
class AlexNetConfig:
    """The shapes of an AlexNet, kept in every checkpoint so that another one is refused.

    Args:
        image_size: side of the square input, in pixels, at least 64. Default 227.
        batch_norm: batch normalization after every convolution and fc6. Default False, as torchvision.
        stem_stride: stride of the first convolution: 4 with torchvision's 11 x 11 kernel, or 2 with a 7 x 7
            kernel. None (default) takes 4 from 128 px up, else 2: stride 4 leaves one cell of a 64-px image.
        fc_dim: width of fc6 and fc7, at least 1. Default 4096.

    Raises:
        ValueError: for a size, stride or width out of these ranges.

    Source: section 4 of the paper; 227 px is the size in the authors' public code.
    Differs from the paper: torchvision's AlexNet, which has fewer filters and no response normalization;
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

    def settings(self) -> dict[str, Any]:
        """Plain values, for results and checkpoints."""
        return {**asdict(self), "stem_stride": self.stride, "grid": self.grid}


@dataclass(frozen=True)
class TrunkConfig:
    """The shapes of another trunk, with a linear embedder behind it.

    Args:
        trunk: "googlenet", "resnet18" or "resnet50" of torchvision, "efficientnet-lite0" with the ImageNet
            weights of its package, "efficientnet-lite0-postures" (its middle maps in a window), or
            "module:function": a function of yours, called without arguments, that returns a module with its
            weights, (B, 3, S, S) images normalized by ImageNet's statistics to (B, D) features or
            (B, D, H, W) maps.
        image_size: side of the square input, in pixels, at least 32. Default 227.
        fc_dim: width of the embedding, at least 1. Default 512, as published for retrieval.

    Raises:
        ValueError: for a size or width out of these ranges, another trunk.

    Source: "Unsupervised Deep Metric Learning via Auxiliary Rotation Loss" (2019): GoogLeNet, its pooled
    feature, a linear embedding of 512; "Representation Learning for Clustering via Building Consensus"
    (2021): ResNets, with a stem for small images.
    Differs from the paper: batch normalization always learns its statistics (there they are fixed).
    """

    trunk: str
    image_size: int = 227
    fc_dim: int = 512

    def __post_init__(self) -> None:
        if self.trunk not in TRUNKS[2:] and not self.function:
            raise ValueError(
                f"--trunk must be one of {', '.join(TRUNKS)}, or module:function, got {self.trunk!r}"
            )
        if self.image_size < 32:
            raise ValueError(
                f"{self.trunk} needs images of at least 32 px, got {self.image_size}: use --image-size 32"
            )
        if self.fc_dim < 1:
            raise ValueError(f"the embedding must be at least 1 wide, got {self.fc_dim}: try --fc-dim 512")

    @property
    def function(self) -> str:
        """module:function that makes the network with its weights; "" for torchvision's."""
        return self.trunk if all(self.trunk.partition(":")) else FACTORIES.get(self.trunk, "")

    @property
    def small_stem(self) -> bool:
        """A ResNet for images below 64 px begins with a 3 x 3 convolution of stride 1 and no pooling."""
        return self.trunk in ("resnet18", "resnet50") and self.image_size < 64

    def settings(self) -> dict[str, Any]:
        """Plain values, for results and checkpoints."""
        return {**asdict(self), "small_stem": self.small_stem}


@dataclass(frozen=True)
class HogConfig:
    """What fixes the shapes of a network that begins as HOG.

    Args:
        image_size: side of the square input, in pixels, a multiple of 8 from 32. Default 96.
        fc_dim: width of the embedding, at least 1. Default 400.

    Raises:
        ValueError: for a size or width out of these ranges.

    Differs from the paper: it trains AlexNet.
    """

    image_size: int = 96
    fc_dim: int = 400

    def __post_init__(self) -> None:
        if self.image_size < 32 or self.image_size % 8:
            raise ValueError(
                f"--trunk hog needs an image size that is a multiple of 8 from 32, got {self.image_size}: "
                "use --image-size 96"
            )
        if self.fc_dim < 1:
            raise ValueError(f"the embedding must be at least 1 wide, got {self.fc_dim}: try --fc-dim 400")

    def settings(self) -> dict[str, Any]:
        """Plain values, for results and checkpoints."""
        return {"trunk": "hog", **asdict(self)}


Architecture: TypeAlias = AlexNetConfig | HogConfig | TrunkConfig


def architecture(trunk: str, image_size: int, fc_dim: int, **of_alexnet: Any) -> Architecture:
    """The shapes of a network; those `of_alexnet` (batch_norm, stem_stride) hold for that alone."""
    if trunk == "hog":
        return HogConfig(image_size, fc_dim)
    if trunk != "alexnet":
        return TrunkConfig(trunk, image_size, fc_dim)
    return AlexNetConfig(image_size, fc_dim=fc_dim, **of_alexnet)
