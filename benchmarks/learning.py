"""The training runs of the benchmarks: one recipe, several methods, the same budget for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pytorch_metric_learning.losses import NTXentLoss, TripletMarginLoss
from pytorch_metric_learning.miners import TripletMarginMiner
from torch import nn

from pml_posets.augmentation import BatchAugmentation
from pml_posets.datasets import WithMirrorImages
from pml_posets.grouping import SurrogateGrouping
from pml_posets.losses import FeatureLoss, PosetLoss
from pml_posets.miners import NearestMedoidMiner
from pml_posets.pseudo_labels import PseudoLabelLoss, WeightedLosses
from pml_posets.samplers import PseudoLabelSampler
from pml_posets.seeding import derive_seeds, preserved_randomness, seed_everything
from pml_posets.trainers import JointTrainer, keep_groups

from . import alexnet
from .logs import RunLog
from .two_views import IndexLoss, TwoViews

Method = Literal["posets", "cliques", "triplet", "ntxent"]
METHODS: tuple[Method, ...] = ("posets", "cliques", "triplet", "ntxent")


@dataclass(frozen=True)
class Recipe:
    """Every choice of a training run that a result depends on.

    Args:
        image_size, batch_norm, fc_dim, dropout: of the AlexNet.
        rounds, iterations: rounds, and iterations in each.
        batch_size: samples in a batch (half as many images, twice, for ntxent).
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
        brightness, colour, grey: augmentation that the paper does not have.
        scale: range of the magnification.
        precision: "float32", "bfloat16" (mixed), or "auto": what is fast here, settled before a run.

    Raises:
        ValueError: for a value out of its range; the message names the option of the command line.
    """

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
        _ = self.architecture  # which checks the image size and the width

    @property
    def architecture(self) -> alexnet.AlexNetConfig:
        """The network's shapes."""
        return alexnet.AlexNetConfig(
            image_size=self.image_size, batch_norm=self.batch_norm, fc_dim=self.fc_dim
        )

    def settings(self) -> dict[str, Any]:
        """Every value, for results and checkpoints."""
        return {**asdict(self), **alexnet.settings(self.architecture)}


def flag(name: str) -> str:
    """The command line's option for a field of `Recipe`."""
    return "--lambda" if name == "lam" else "--" + name.replace("_", "-")


_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("rounds", "iterations", "num_nearest", "num_classes"), (1, math.inf)),
    **dict.fromkeys(("batch_size", "min_size", "max_size"), (2, math.inf)),
    **dict.fromkeys(("classification", "lam", "feature", "lr", "weight_decay", "sigma"), (0, 1e6)),
    **dict.fromkeys(("unassigned_fraction", "top_fraction", "mix", "momentum", "ema", "dropout"), (0, 1)),
    **dict.fromkeys(("random_fraction", "brightness", "grey"), (0, 1)),
    "colour": (0, 1e6),
}
PAPER = Recipe(num_classes=20_000, mean_size=8.0)
SMALL = Recipe(
    image_size=64,
    batch_norm=True,
    fc_dim=1024,
    dropout=0.0,
    rounds=2,
    iterations=200,
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
FIGURES = replace(SMALL, iterations=200, batch_size=96)
TINY = replace(SMALL, iterations=4, batch_size=32, fc_dim=64)
PRESETS: dict[str, Recipe] = {"paper": PAPER, "small": SMALL, "figures": FIGURES, "tiny": TINY}


@dataclass
class Start:
    """What training starts from.

    Args:
        features: (N, D) float32, unit rows: the first similarities (HOG-LDA).
        mirrored: (N, D) float32, those of the mirrored images; None: mirror images are not looked at.
        sources: (N,) source of each sample; None: each its own.
    """

    features: np.ndarray
    mirrored: np.ndarray | None = None
    sources: np.ndarray | None = None

    def with_mirror_images(self) -> Start:
        """The same with every mirror image as a sample of its own, behind the others."""
        sources = np.arange(len(self.features)) if self.sources is None else self.sources
        mirrored = [] if self.mirrored is None else [self.mirrored]
        return Start(np.concatenate([self.features, *mirrored]), None, np.tile(sources, 1 + len(mirrored)))


def train(
    method: Method,
    images: Any,
    start: Start,
    recipe: Recipe,
    *,
    seed: int,
    device: str = "cpu",
    num_workers: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    models: dict[str, nn.Module] | None = None,
    end_of_round: Callable[[JointTrainer], Any] | None = None,
    log: RunLog | None = None,
    settings: Mapping[str, Any] | None = None,
) -> JointTrainer:
    """Train an AlexNet without labels by one of the methods, to the end or from where a run was stopped.

    All methods see the same images, first similarities, augmentation, optimizer and number of iterations.

    Args:
        method: "posets"; "cliques": the surrogate classification loss alone (lambda = 0) on classes alone;
            "triplet": PML's triplet loss and miner on the same surrogate classes; "ntxent": PML's NT-Xent on
            two augmented views, which needs no classes.
        images: yields (3, S, S) uint8 tensors, in the order of the start's features (an `ImageStore`).
        start: first similarities.
        recipe: every other choice.
        seed: of weights, batches and augmentation.
        device: to train on.
        num_workers: processes that load images.
        output_dir: folder of the checkpoint; None: none.
        resume: go on from the checkpoint there, if there is one.
        progress: show progress bars.
        models: {"trunk", "embedder"} to begin with; None: random weights.
        end_of_round: called with the trainer after each round.
        log: of the run; None: none.
        settings: what else tells runs apart (the data, the first similarities), for the checkpoint.

    Returns:
        The trainer at its end; `evaluation_models` are the networks, `history` the losses.

    Raises:
        ValueError: for an unknown method; errors of `JointTrainer` otherwise.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if recipe.mirror_images and start.mirrored is not None:
        images, start = WithMirrorImages(images), start.with_mirror_images()
    models = alexnet.build(recipe.architecture, seed, recipe.dropout) if models is None else models
    models = {"trunk": nn.Sequential(_augmentation(recipe), models["trunk"]), "embedder": models["embedder"]}
    networks: dict[str, Any] = {name: model.to(device) for name, model in models.items()}
    options: dict[str, Any] = {}
    if method == "ntxent":
        sampler: Any = TwoViews(len(start.features), recipe.batch_size, recipe.iterations, seed)
        losses: dict[str, Any] = {"metric_loss": IndexLoss(NTXentLoss(temperature=0.1))}
    else:
        sampler = _pseudo_label_sampler(method, start, recipe, seed)
        with preserved_randomness():
            seed_everything(derive_seeds(seed)[0])  # a loss may have weights too
            losses = {"metric_loss": _metric_loss(method, start, recipe)}
        if method == "triplet":
            options["mining_funcs"] = {
                "tuple_miner": TripletMarginMiner(margin=0.2, type_of_triplets="semihard")
            }
        else:
            if method == "posets":  # the representatives are those of the round, R in Eq. 6
                miner = NearestMedoidMiner(recipe.num_nearest, anchors=recipe.anchors)
                options["mining_funcs"] = {"tuple_miner": miner}
            networks["classifier"] = lambda num_classes: nn.Linear(recipe.fc_dim, num_classes)
            losses["classifier_loss"] = nn.CrossEntropyLoss()
            weighed = method == "posets"
            options["loss_weights"] = {
                "classifier_loss": recipe.classification if weighed else 1.0,
                "metric_loss": 1.0 if weighed and (recipe.lam or recipe.feature) else 0.0,
            }
    total = recipe.rounds * recipe.iterations
    names = [*networks, *(["metric_loss"] if method == "posets" and recipe.feature else [])]
    joint = JointTrainer(
        models=networks,
        optimizers={f"{name}_optimizer": _optimizer(recipe) for name in names},
        lr_schedulers={f"{name}_scheduler_by_iteration": _schedule(recipe, total) for name in names},
        sampler=sampler,
        loss_funcs=losses,
        dataset=images,
        num_rounds=recipe.rounds,
        iterations_per_round=recipe.iterations,
        feature_fn=_feature_fn(method, start, recipe),
        feature_options={"batch_size": 256},
        output_dir=output_dir,
        checkpoint_every=max(50, recipe.iterations // 4),
        settings={"method": method, **recipe.settings(), **(settings or {})},
        seed=seed,
        ema_decay=recipe.ema or None,
        autocast=torch.bfloat16 if recipe.precision == "bfloat16" else None,
        record_every=max(1, total // 200),
        progress=progress,
        dataloader_num_workers=num_workers,
        end_of_iteration_hook=None if log is None else log.record,
        end_of_epoch_hook=None if end_of_round is None else lambda trainer: end_of_round(trainer.joint),
        **options,
    )
    joint.train(resume=resume)
    return joint


def _augmentation(recipe: Recipe) -> BatchAugmentation:
    return BatchAugmentation(
        scale=recipe.scale, brightness=recipe.brightness, colour=recipe.colour, grey=recipe.grey
    )


def _pseudo_label_sampler(method: Method, start: Start, recipe: Recipe, seed: int) -> PseudoLabelSampler:
    grouping = SurrogateGrouping(
        num_classes=recipe.num_classes,
        min_size=recipe.min_size,
        max_size=recipe.max_size,
        mean_size=recipe.mean_size,
        top_fraction=recipe.top_fraction,
        random_state=seed,
    )
    return PseudoLabelSampler(
        start.features,
        recipe.batch_size,
        num_nearest=recipe.num_nearest,
        unassigned_fraction=recipe.unassigned_fraction if method == "posets" else 0.0,
        random_fraction=recipe.random_fraction if method == "posets" else 0.0,
        grouping=grouping,
        assignment=_assignment(recipe, seed),
        warm_start=recipe.refine,
        sources=start.sources,
        mirrored=start.mirrored,
        num_batches=recipe.iterations,
        seed=seed,
    )


def _assignment(recipe: Recipe, seed: int) -> Any:
    if not recipe.refine:
        return None
    from pml_posets.assignment import RelaxedAssignment

    return RelaxedAssignment(min_size=recipe.min_size, random_state=seed)


def _metric_loss(method: Method, start: Start, recipe: Recipe) -> nn.Module:
    if method == "triplet":
        return TripletMarginLoss(margin=0.2)
    poset = PosetLoss(recipe.num_nearest, sigma=recipe.sigma, anchors=recipe.anchors)
    weights = {"poset": recipe.lam, "feature": recipe.feature}
    if method == "cliques" or not any(weights.values()):  # its weight is 0 then
        return poset
    parts: dict[str, nn.Module] = {"poset": PseudoLabelLoss(poset, unassigned="keep")}
    if recipe.feature:
        parts["feature"] = FeatureLoss(recipe.fc_dim, start.features, start.mirrored)
    return WeightedLosses(parts, {name: weights[name] for name in parts})


def _feature_fn(method: Method, start: Start, recipe: Recipe) -> Callable[[JointTrainer], Any] | None:
    """What groups are made of from the second round on."""
    if method == "ntxent" or recipe.regroup == "fixed":
        return keep_groups
    if recipe.regroup == "network":
        return None
    return lambda joint: _mixed(joint.extract(), start, recipe.mix)


def _mixed(network: Any, start: Start, share: float) -> Any:
    """Stacked unit features: their squared distances, and so their cosines, add up with the shares."""
    mine, first = share**0.5, (1 - share) ** 0.5
    if start.mirrored is None:
        return np.hstack([mine * network, first * start.features])
    plain, mirrored = network
    return np.hstack([mine * plain, first * start.features]), np.hstack(
        [mine * mirrored, first * start.mirrored]
    )


def _optimizer(recipe: Recipe) -> Callable[[Any], torch.optim.Optimizer]:
    if recipe.optimizer == "adamw":
        return lambda parameters: torch.optim.AdamW(
            parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )
    return lambda parameters: torch.optim.SGD(
        parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def _schedule(recipe: Recipe, total: int) -> Callable[[torch.optim.Optimizer], Any]:
    warm_up = min(20, total)

    def factor(step: int) -> float:
        if recipe.schedule == "constant":
            return 1.0
        return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(step, total) / total))

    return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
