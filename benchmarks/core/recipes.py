"""The recipes of the benchmarks: every choice of a training run, and presets of them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from benchmarks.core import alexnet, trunks


@dataclass(frozen=True)
class Recipe:
    """Every choice of a training run that a result depends on.

    Args:
        trunk: "alexnet", or a network of torchvision with a linear embedder (see `trunks`).
        image_size, fc_dim, dropout: of the network; fc_dim is the width of AlexNet's fc6 and fc7, or of the
            embedding.
        batch_norm: of AlexNet; the others have theirs in any case.
        rounds, iterations: rounds, and iterations in each.
        batch_size: samples in a batch (half as many images, twice, for methods of two views).
        classification: weight of the surrogate classification loss (1 in Eq. 2).
        lam: lambda, the weight of the poset loss (Eq. 2).
        feature: weight of the feature loss, which the paper does not have; 0 leaves it out.
        num_nearest: Z.
        anchors: of the poset loss: the "unassigned" samples, as in the paper, or "all".
        unassigned_fraction: largest part of a batch for unassigned samples.
        random_fraction: part of a batch that is drawn from all samples alike (posets alone).
        num_classes, mean_size: of the surrogate classes; None: what comes out.
        min_size, max_size, top_fraction: of the grouping.
        mirror_images: take every mirror image for a sample of its own; else a sample has the orientation in
            which it fits its class.
        regroup: what groups are made of from round 2 on: "network" features, "mixed" with the initial ones,
            or "fixed": the groups of round 1 stay.
        mix: share of the network's similarity in "mixed", in [0, 1].
        refine: run the relaxed assignment (Eq. 5) in each y-step.
        optimizer, lr, momentum, weight_decay: the same for all layers; momentum is that of "sgd".
        schedule: of the learning rate over the run: "constant" or "cosine" (with a short warm-up).
        ema: decay of the weights' moving average; 0: none.
        sigma: of the poset loss; None: estimated.
        num_clusters: K of k-means, and prototypes of concurl; None: what the benchmark says (100, or the
            number of classes where that is to be found).
        samples_per_cluster: samples of a cluster in a batch, and the nearest neighbours, itself included, of
            each of stml's queries. 5 is the published value of both.
        rotation: eta, the weight of the rotation loss; 0.1 is the published value.
        attention: weight of the attention consistency loss beside the contrastive clustering loss. None:
            (H W)^2 of maps of H x W places: attention sums to 1, so the loss is of the order 1 / (H W)^2.
        exemplar, population, consensus: beta, alpha and gamma of concurl; 1, 0 and 1 are published. With
            population above 0 the prototypes are trained.
        num_transforms: M of concurl (1 to 64 are published).
        brightness, colour, grey: augmentation that the paper does not have.
        scale: range of the magnification.
        precision: "float32", "bfloat16" (mixed), or "auto": what is fast here, settled before a run.

    Raises:
        ValueError: for a value out of its range; the message names the option of the command line.
    """

    trunk: trunks.TrunkName = "alexnet"
    image_size: int = 227
    batch_norm: bool = False
    fc_dim: int = 4096
    dropout: float = 0.5
    rounds: int = 10
    iterations: int = 20_000
    batch_size: int = 128
    classification: float = 1.0
    lam: float = 1.0
    feature: float = 0.0
    num_nearest: int = 2
    anchors: Literal["unassigned", "all"] = "unassigned"
    unassigned_fraction: float = 0.5
    random_fraction: float = 0.0
    num_classes: int | None = None
    mean_size: float | None = None
    min_size: int = 3
    max_size: int = 16
    top_fraction: float = 0.05
    mirror_images: bool = False
    regroup: Literal["network", "mixed", "fixed"] = "network"
    mix: float = 0.5
    refine: bool = True
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["constant", "cosine"] = "constant"
    ema: float = 0.0
    sigma: float | None = None
    num_clusters: int | None = None
    samples_per_cluster: int = 5
    rotation: float = 0.1
    attention: float | None = None
    exemplar: float = 1.0
    population: float = 0.0
    consensus: float = 1.0
    num_transforms: int = 64
    brightness: float = 0.0
    colour: float = 0.0
    grey: float = 0.0
    scale: tuple[float, float] = (1.0, 1.41)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                bound = f"at least {least:g}" if value < least or most == math.inf else f"at most {most:g}"
                raise ValueError(f"{flag(name)} must be {bound}, got {value}")
        for name in ("lr", "sigma", "top_fraction"):
            if getattr(self, name) == 0:
                raise ValueError(f"{flag(name)} must be above 0, got 0")
        for name in ("momentum", "ema", "dropout"):
            if getattr(self, name) == 1:
                raise ValueError(f"{flag(name)} must be below 1, got 1")
        if not self.min_size <= (self.mean_size or self.min_size) <= self.max_size:
            raise ValueError(
                "--min-size, --mean-size and --max-size must not decrease, "
                f"got {self.min_size}, {self.mean_size}, {self.max_size}"
            )
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"--scale must be two numbers above 0, LOW and HIGH, got {self.scale}")
        if not self.classification and not self.lam and not self.feature:
            raise ValueError("--classification, --lambda and --feature are all 0: there is nothing to learn")
        if not self.population and not self.consensus:
            raise ValueError(
                "--population and --consensus are both 0: concurl has no clusters to agree on then"
            )
        _ = self.architecture  # which checks the trunk, the image size and the width

    @property
    def architecture(self) -> trunks.Architecture:
        """The network's shapes."""
        if self.trunk != "alexnet":
            return trunks.TorchvisionConfig(self.trunk, self.image_size, self.fc_dim)
        return alexnet.AlexNetConfig(
            image_size=self.image_size, batch_norm=self.batch_norm, fc_dim=self.fc_dim
        )

    def settings(self) -> dict[str, Any]:
        """Every value, for results and checkpoints."""
        return {**asdict(self), **trunks.settings(self.architecture)}


def flag(name: str) -> str:
    """The command line's option for a field of `Recipe`."""
    return "--lambda" if name == "lam" else "--" + name.replace("_", "-")


_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("rounds", "iterations", "num_nearest", "num_classes", "num_transforms"), (1, math.inf)),
    **dict.fromkeys(("batch_size", "min_size", "max_size"), (2, math.inf)),
    **dict.fromkeys(("num_clusters", "samples_per_cluster"), (2, math.inf)),
    **dict.fromkeys(("classification", "lam", "feature", "lr", "weight_decay", "sigma"), (0, 1e6)),
    **dict.fromkeys(("unassigned_fraction", "top_fraction", "mix", "momentum", "ema", "dropout"), (0, 1)),
    **dict.fromkeys(("random_fraction", "brightness", "grey"), (0, 1)),
    **dict.fromkeys(("rotation", "exemplar", "population", "consensus"), (0, 1e6)),
    "colour": (0, 1e6),
    "attention": (0, 1e12),
}
PAPER = Recipe(num_classes=20_000, mean_size=8.0)
SMALL = Recipe(
    image_size=64,
    batch_norm=True,
    fc_dim=1024,
    dropout=0.0,
    rounds=2,
    iterations=400,
    classification=0.03,
    lam=0.03,
    feature=3.0,
    anchors="all",
    random_fraction=0.9,
    mirror_images=True,
    regroup="mixed",
    mix=0.3,
    refine=False,
    optimizer="adamw",
    weight_decay=1e-4,
    schedule="cosine",
    sigma=0.35,
    brightness=0.4,
    colour=0.3,
    grey=0.3,
    scale=(0.95, 1.41),
    precision="auto",
)
FIGURES = replace(SMALL, iterations=140, batch_size=96)  # minutes on two cores, for three seeds
TINY = replace(SMALL, iterations=4, batch_size=32, fc_dim=64)
PRESETS: dict[str, Recipe] = {"paper": PAPER, "small": SMALL, "figures": FIGURES, "tiny": TINY}
