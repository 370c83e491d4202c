"""What a DeepPose result depends on: presets, networks to begin from. Nothing here imports torch at first."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.core.architectures import AlexNetConfig, Architecture
from benchmarks.core.recipes import LEARNING, NETWORK, Choices, choice

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class PoseRecipe(Choices):
    """Every choice of a training, beside its first weights; each field says what it does.

    Source: section 4.1.2. The authors' public code has 1,000,000 iterations, batches of 128, Adagrad at 5e-4,
        dropout 0.6, mirror images, shifts of 0.1; convolutions frozen for 10,000 iterations where they come
        from ImageNet.
    Differs from the paper: its code enlarges the joints' box by 1.5 to 2, each side on its own; here a crop
        of 1.3 is magnified as a whole. The presets but "paper" are ours, and so is the mean pose.
    """

    trunk: str = choice("alexnet", "alexnet, googlenet, resnet18, resnet50, efficientnet-lite0 or -lite0-postures (with ImageNet weights), or module:function", group=NETWORK)  # fmt: skip  # noqa: E501
    image_size: int = choice(64, "pixels of a side", group=NETWORK)
    fc_dim: int = choice(1024, "width of AlexNet's fc6 and fc7, or of the embedding", group=NETWORK)
    batch_norm: bool = choice(True, "AlexNet with batch normalization; the others have theirs")
    freeze: tuple[str, ...] = choice((), "parameters of the trunk that stay as they are, with their batch norm, by pattern", group=NETWORK)  # fmt: skip  # noqa: E501
    frozen_iterations: int = choice(0, "iterations at the beginning in which the whole trunk stays as it is", 0)  # fmt: skip  # noqa: E501
    iterations: int = choice(1000, "steps", 1, group=LEARNING)
    batch_size: int = choice(128, "people in a batch", 2, group=LEARNING)
    lr: float = choice(1e-3, "learning rate, the same for all layers", 0, 1e6, excluded=0, group=LEARNING)
    optimizer: str = choice("adamw", "of all layers; sgd has momentum 0.9", values=("adamw", "adagrad", "sgd"))  # fmt: skip  # noqa: E501
    schedule: str = choice("cosine", "of the learning rate; cosine has a short warm-up", values=("constant", "cosine"))  # fmt: skip  # noqa: E501
    weight_decay: float = choice(1e-4, "of the optimizer", 0, 1e6)
    dropout: float = choice(0.2, "before fc6 and fc7, or the embedding", 0, 1, excluded=1)
    scale: tuple[float, float] = choice((0.8, 1.1), "range of the magnification of a person")
    shift: float = choice(0.05, "largest shift of a person to any side, as a share of the image", 0, 1)
    mean_pose: bool = choice(True, "begin from the mean of the labeled poses and their mirror images, not from the middle")  # fmt: skip  # noqa: E501
    precision: str = choice("auto", "auto: what is fast here", values=("auto", "float32", "bfloat16"))

    def settings(self) -> dict[str, Any]:
        """Every value, as plain ones, for results and checkpoints."""
        return {**asdict(self), "scale": list(self.scale), "freeze": list(self.freeze)}


SMALL = PoseRecipe()
PRESETS = {
    "paper": PoseRecipe(
        image_size=227,
        batch_norm=False,
        fc_dim=4096,
        iterations=1_000_000,
        lr=5e-4,
        optimizer="adagrad",
        schedule="constant",
        weight_decay=0.0,
        dropout=0.6,
        shift=0.1,
        mean_pose=False,
    ),
    "small": SMALL,
    "figures": replace(SMALL, iterations=200, batch_size=64),
    "tiny": replace(SMALL, fc_dim=64, iterations=4, batch_size=16),
}


@dataclass(frozen=True)
class Init:
    """What a regressor begins from.

    Args:
        name: in the tables and the folders.
        kind: random weights, those that the trunk brings, a checkpoint.pt of a benchmark, or torchvision's
            ImageNet weights.
        path: of the file, if any.
    """

    name: str
    kind: Literal["random", "pretrained", "posets", "imagenet"]
    path: Path | None = None

    def shape(self, shape: Architecture) -> Architecture:
        """The network's shapes: those of the run; of an AlexNet torchvision's own for its weights."""
        of_torchvision = self.kind == "imagenet" and isinstance(shape, AlexNetConfig)
        return AlexNetConfig() if of_torchvision else shape

    def models(self, shape: Architecture, layers: str, seed: int, dropout: float) -> dict[str, nn.Module]:
        """A network whose layers up to `layers` are those of the file, and the others random.

        Args:
            shape: of the run.
            layers: the last one that is taken from the file.
            seed: of the random weights.
            dropout: before fc6 and fc7, or the embedding.
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
            trunk_alone = layers in ("pool5", "pooled")
            networks.load_trained({"trunk": given["trunk"]} if trunk_alone else given, self.path)
        taken, begun = (networks.up_to(parts, layers) for parts in (given, models))
        begun.load_state_dict(taken.state_dict())
        return models
