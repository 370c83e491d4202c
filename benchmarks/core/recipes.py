"""The recipes of the benchmarks: every choice of a training run, presets of them.

Nothing here imports torch, so that a command line is answered at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.core.architectures import Architecture, architecture

if TYPE_CHECKING:
    from typing import Self


def choice(
    default: Any,
    says: str,
    low: float | None = None,
    high: float = math.inf,
    *,
    group: str = "",
    excluded: float | None = None,
    values: tuple[str, ...] = (),
) -> Any:
    """A field of a recipe: its range, and what it does to the result, for --help.

    A field of no group is for trials and hidden behind --set.
    """
    about = dict(says=says, low=low, high=high, group=group, excluded=excluded, values=values)
    return field(default=default, metadata=about)


NETWORK, LEARNING = "network", "learning"  # groups of --help


@dataclass(frozen=True)
class Choices:
    """What the recipes of all benchmarks share: a network, and values that their fields check."""

    if TYPE_CHECKING:
        trunk: str
        image_size: int
        fc_dim: int
        batch_norm: bool
        scale: tuple[float, float]
        lr: float
        optimizer: str
        weight_decay: float
        schedule: str

    def __post_init__(self) -> None:
        for one in fields(self):
            check_value(flag(one.name), getattr(self, one.name), one.metadata)
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise ValueError(f"--scale must be two numbers above 0, LOW and HIGH, got {self.scale}")
        _ = self.architecture  # which checks the trunk, the image size and the width

    @property
    def architecture(self) -> Architecture:
        """The network's shapes."""
        return architecture(self.trunk, self.image_size, self.fc_dim, batch_norm=self.batch_norm)

    def shaped_as(self, network: Architecture) -> Self:
        """The same recipe for a network of these shapes."""
        shapes = {"trunk": "alexnet", **network.settings()}
        names = ("trunk", "image_size", "batch_norm", "fc_dim")
        return replace(self, **{name: shapes[name] for name in names if name in shapes})

    @property
    def brings_weights(self) -> bool:
        """True for a trunk that a function makes: it does not begin at random."""
        return bool(getattr(self.architecture, "function", ""))


@dataclass(frozen=True)
class Recipe(Choices):
    """Every choice of a training run that a result depends on; each field says what it does.

    Raises:
        ValueError: for a value out of its range; the message names the option of the command line.
    """

    trunk: str = choice("alexnet", "alexnet, hog (begins as HOG), googlenet, resnet18, resnet50, efficientnet-lite0 or -lite0-postures (with ImageNet weights), or module:function", group=NETWORK)  # fmt: skip  # noqa: E501
    image_size: int = choice(227, "pixels of a side; time grows with its square", group=NETWORK)
    fc_dim: int = choice(4096, "width of AlexNet's fc6 and fc7, or of the embedding", group=NETWORK)
    batch_norm: bool = choice(False, "AlexNet with batch normalization; the others have theirs")
    dropout: float = choice(0.5, "before fc6 and fc7, or the embedder", 0, 1, excluded=1)
    freeze: tuple[str, ...] = choice((), "parameters of the trunk that stay, with their batch norm: '*', 'features.[0-4].*'", group=NETWORK)  # fmt: skip  # noqa: E501
    cached_maps: str = choice("", "train what is behind this layer on maps of a few views of each image, computed once", group=NETWORK)  # fmt: skip  # noqa: E501
    cached_views: int = choice(4, "random views of each image, of --cached-maps", 1)
    whitening: float | None = choice(None, "the embedding begins as PCA of the trunk's features, over their deviations to this power; default: at random", 0, 1)  # fmt: skip  # noqa: E501
    ridge: bool = choice(
        True, "--trunk hog: the embedding begins as the best linear map of HOG to what is taught"
    )
    train_batch_norm: bool = choice(True, "batch normalization counts on, and its weights learn")
    rounds: int = choice(10, "of grouping and training", 1, group=LEARNING)
    iterations: int = choice(20_000, "in each round", 1, group=LEARNING)
    batch_size: int = choice(128, "samples; half as many images, twice, for methods of two views", 2, group=LEARNING)  # fmt: skip  # noqa: E501
    lr: float = choice(1e-3, "learning rate, the same for all layers", 0, 1e6, excluded=0, group=LEARNING)
    classification: float = choice(1.0, "weight of the surrogate classification loss (1 in Eq. 2)", 0, 1e6, group=LEARNING)  # fmt: skip  # noqa: E501
    lam: float = choice(1.0, "weight of the poset loss (Eq. 2)", 0, 1e6, group=LEARNING)
    feature: float = choice(0.0, "weight of predicting the first similarities; not in the paper", 0, 1e6, group=LEARNING)  # fmt: skip  # noqa: E501
    num_nearest: int = choice(2, "Z, the classes whose posets a sample is in", 1, group=LEARNING)
    num_classes: int | None = choice(None, "surrogate classes; default: what comes out", 1, group=LEARNING)
    groups: str = choice("surrogate", "surrogate: of section 3.1; sure: by one threshold, along clips if known", values=("surrogate", "sure"), group=LEARNING)  # fmt: skip  # noqa: E501
    coverage: float = choice(0.1, "share of samples whose nearest neighbor is sure, of --groups sure", 0, 1, excluded=0)  # fmt: skip  # noqa: E501
    mutual: int = choice(
        0, "rank within which sure pairs must be each other's neighbors, of --groups sure; 0: any", 0
    )
    num_clusters: int | None = choice(None, "K of k-means and concurl's prototypes", 2, group=LEARNING)
    anchors: Literal["unassigned", "all"] = choice("unassigned", "of the poset loss; the paper: the unassigned samples", values=("unassigned", "all"))  # fmt: skip  # noqa: E501
    unassigned_fraction: float = choice(0.5, "largest part of a batch for unassigned samples", 0, 1)
    random_fraction: float = choice(0.0, "part of a batch drawn from all samples alike (posets)", 0, 1)
    mean_size: float | None = choice(None, "of the surrogate classes; default: what comes out")
    min_size: int = choice(3, "of a surrogate class", 2)
    max_size: int = choice(16, "of a surrogate class", 2)
    top_fraction: float = choice(0.05, "of all pairs that count as similar", 0, 1, excluded=0)
    mirror_images: bool = choice(False, "each mirror image is a sample of its own; else a sample takes the orientation that fits its class")  # fmt: skip  # noqa: E501
    regroup: str = choice("network", "groups from round 2 on: by the network's features, those mixed with the first, or fixed", values=("network", "mixed", "fixed"))  # fmt: skip  # noqa: E501
    mix: float = choice(0.5, "share of the network's similarity in --regroup mixed", 0, 1)
    refine: bool = choice(True, "the relaxed assignment (Eq. 5) in each y-step")
    optimizer: str = choice("sgd", "of all layers", values=("sgd", "adamw"))
    momentum: float = choice(0.9, "of sgd", 0, 1, excluded=1)
    weight_decay: float = choice(5e-4, "of the optimizer", 0, 1e6)
    schedule: str = choice("constant", "of the learning rate; cosine has a short warm-up", values=("constant", "cosine"))  # fmt: skip  # noqa: E501
    ema: float = choice(0.0, "decay of the moving average of the weights; 0: none", 0, 1, excluded=1)
    sigma: float | None = choice(None, "of the poset loss; default: estimated", 0, 1e6, excluded=0)
    samples_per_cluster: int = choice(5, "of a cluster in a batch; nearest of a query of stml (published: 5)", 2)  # fmt: skip  # noqa: E501
    rotation: float = choice(0.1, "weight of the rotation loss (published: 0.1)", 0, 1e6)
    attention: float | None = choice(None, "weight of tac-ccl's attention loss; default: (H W)^2 of its maps, which sum to 1", 0, 1e12)  # fmt: skip  # noqa: E501
    exemplar: float = choice(1.0, "concurl's beta (published: 1)", 0, 1e6)
    population: float = choice(0.0, "concurl's alpha (published: 0); above 0 prototypes are trained", 0, 1e6)
    consensus: float = choice(1.0, "concurl's gamma (published: 1)", 0, 1e6)
    num_transforms: int = choice(64, "concurl's M (published: 1 to 64)", 1)
    brightness: float = choice(0.0, "augmentation; not in the paper", 0, 1)
    color: float = choice(0.0, "augmentation; not in the paper", 0, 1e6)
    gray: float = choice(0.0, "augmentation: share of images without color; not in the paper", 0, 1)
    scale: tuple[float, float] = choice((1.0, 1.41), "range of the magnification in augmentation")
    movement: float = choice(1.0, "rotation, shear and shift in augmentation, in units of the paper's", 0, 9)
    precision: str = choice("auto", "auto: what is fast here", values=("auto", "float32", "bfloat16"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.min_size <= (self.mean_size or self.min_size) <= self.max_size:
            raise ValueError(
                "--min-size, --mean-size and --max-size must not decrease, "
                f"got {self.min_size}, {self.mean_size}, {self.max_size}"
            )
        if not self.classification and not self.lam and not self.feature:
            raise ValueError("--classification, --lambda and --feature are all 0: there is nothing to learn")
        if not self.population and not self.consensus:
            raise ValueError(
                "--population and --consensus are both 0: concurl then has no clusters to agree on"
            )

    def settings(self) -> dict[str, Any]:
        """Every value, for results and checkpoints."""
        return {**asdict(self), "freeze": list(self.freeze), **self.architecture.settings()}


def flag(name: str) -> str:
    """The command line's option for a field of `Recipe`."""
    return "--lambda" if name == "lam" else "--" + name.replace("_", "-")


def check_value(option: str, value: Any, about: Mapping[str, Any]) -> None:
    """See that a value is one of the values of its field, or in its range."""
    values, low, high = about["values"], about["low"], about["high"]
    if values and value not in values:
        raise ValueError(f"{option} must be one of {', '.join(values)}, got {value!r}")
    if low is None or value is None:
        return
    if not low <= value <= high:
        below = "above" if about["excluded"] == low else "at least"
        bound = f"{below} {low:g}" if value < low or high == math.inf else f"at most {high:g}"
        raise ValueError(f"{option} must be {bound}, got {value}")
    if value == about["excluded"]:
        raise ValueError(f"{option} must be {'above' if value == low else 'below'} {value:g}, got {value:g}")


PAPER = Recipe(num_classes=20_000, mean_size=8.0)
SMALL = Recipe(
    image_size=64, batch_norm=True, fc_dim=1024, dropout=0.0, rounds=2, iterations=400, classification=0.03,
    lam=0.03, feature=3.0, anchors="all", random_fraction=0.9, mirror_images=True, regroup="mixed", mix=0.3,
    refine=False, optimizer="adamw", weight_decay=1e-4, schedule="cosine", sigma=0.35, brightness=0.4,
    color=0.3, gray=0.3, scale=(0.95, 1.41),
)  # fmt: skip
POSTURES = replace(SMALL, scale=(1.0, 1.0), movement=0.0)  # boxes show each person at the same place
FIGURES = replace(SMALL, iterations=140, batch_size=96)  # minutes on two cores, for three seeds
CLIPS = replace(FIGURES, iterations=160, lr=2e-3, scale=(1.0, 1.0), movement=0.0, color=0.0, gray=0.0)
TINY = replace(SMALL, iterations=4, batch_size=32, fc_dim=64)
PRESETS = {
    "paper": PAPER, "small": SMALL, "postures": POSTURES, "figures": FIGURES, "clips": CLIPS, "tiny": TINY,
}  # fmt: skip
