"""The command line of deeppose.py, checked before any work is done."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from benchmarks.core import alexnet, common
from benchmarks.core.options import Help, add_figures, check_figures, fast_precision, new_folder
from benchmarks.core.trained import config_of, load_trained
from benchmarks.regression.training import PoseRecipe

KINDS = ("random", "posets", "imagenet")
SMALL = PoseRecipe()
PAPER = PoseRecipe(
    iterations=1_000_000,
    lr=5e-4,
    optimizer="adagrad",
    schedule="constant",
    weight_decay=0.0,
    dropout=0.6,
    shift=0.1,
    mean_pose=False,
)
PRESETS: dict[str, tuple[alexnet.AlexNetConfig, PoseRecipe]] = {
    "paper": (alexnet.AlexNetConfig(), PAPER),
    "small": (alexnet.AlexNetConfig(64, batch_norm=True, fc_dim=1024), SMALL),
    "figures": (
        alexnet.AlexNetConfig(64, batch_norm=True, fc_dim=1024),
        replace(SMALL, iterations=200, batch_size=64),
    ),
    "tiny": (
        alexnet.AlexNetConfig(64, batch_norm=True, fc_dim=64),
        replace(SMALL, iterations=4, batch_size=16),
    ),
}
SHAPE = ("image_size", "batch_norm", "fc_dim")  # options of the network


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

    def shape(self, shape: alexnet.AlexNetConfig) -> alexnet.AlexNetConfig:
        """The network's shapes: those of the run; torchvision's own for its weights."""
        return alexnet.AlexNetConfig() if self.kind == "imagenet" else shape

    def models(
        self, shape: alexnet.AlexNetConfig, layers: alexnet.Layer, seed: int, dropout: float
    ) -> dict[str, nn.Module]:
        """An AlexNet whose layers up to one are those of the file, and the others random.

        Args:
            shape: of the run.
            layers: the last one that is taken from the file.
            seed: of the random weights.
            dropout: before fc6 and fc7.

        Raises:
            FileNotFoundError, ValueError: for a file that is not there, damaged, or of other shapes.
        """
        shape = self.shape(shape)
        models = alexnet.build(shape, seed, dropout)
        if self.path is None:
            return models
        given = alexnet.build(shape, seed)
        if self.kind == "imagenet":
            alexnet.load_imagenet(given, self.path)
        else:
            load_trained(given if layers != "pool5" else {"trunk": given["trunk"]}, self.path)
        taken = _parts(models, layers)
        for part, theirs in zip(taken, _parts(given, layers), strict=True):
            part.load_state_dict(theirs.state_dict())
        return models


def _parts(models: Mapping[str, nn.Module], layers: alexnet.Layer) -> list[nn.Module]:
    """The parts of an AlexNet up to a layer."""
    embedder = models["embedder"]
    rest = {"pool5": [], "fc6": [embedder.get_submodule("fc6")], "fc7": [embedder]}
    return [models["trunk"], *rest[layers]]


@dataclass(frozen=True)
class PoseRunOptions:
    """What a run was asked for; see the command's --help. Without `data_root` and MPII: drawn figures."""

    data_root: Path | None
    extra_root: Path | None
    mpii_annotations: Path | None
    mpii_images: Path | None
    mpii_people: str
    split_seed: int
    head_size: str
    skip_unreadable: bool
    figures: str
    output: Path
    cache: Path
    resume: bool
    inits: tuple[Init, ...]
    layers: alexnet.Layer
    fractions: tuple[float, ...]
    preset: str
    shape: alexnet.AlexNetConfig
    recipe: PoseRecipe
    seeds: tuple[int, ...]
    device: str
    workers: int
    progress: bool


def parse(description: str, arguments: Sequence[str] | None) -> PoseRunOptions:
    """Read and check the command line.

    Args:
        description: of the benchmark; its first paragraph heads the help.
        arguments: None: those of the process.

    Raises:
        ValueError: for values that do not fit together, and files that are not there or do not fit.
        SystemExit: by argparse, for unknown options and for --help.
    """
    got = _parser(description).parse_args(arguments)
    _check(got)
    drawn = got.data_root is None and got.mpii_annotations is None
    preset = got.preset or ("figures" if drawn else "small")
    inits = _inits(got.init or [["random"]])
    shape, recipe = PRESETS[preset]
    given = {name: getattr(got, name) for name in SHAPE if hasattr(got, name)}
    trained = [config_of(init.path) for init in inits if init.kind == "posets" and init.path is not None]
    shape = replace(trained[0] if trained else shape, **given)
    device = common.pick_device(got.device)
    chosen = {one.name: getattr(got, one.name) for one in fields(PoseRecipe) if hasattr(got, one.name)}
    if "scale" in chosen:
        chosen["scale"] = tuple(chosen["scale"])
    if chosen.get("precision", "auto") == "auto":
        chosen["precision"] = fast_precision(device)
    recipe = replace(recipe, **chosen)
    for init in inits:
        if init.path is not None:  # does it fit?
            init.models(shape, got.init_layers, seed=0, dropout=recipe.dropout)
    return PoseRunOptions(
        data_root=got.data_root,
        extra_root=got.extra_root,
        mpii_annotations=got.mpii_annotations,
        mpii_images=got.mpii_images,
        mpii_people=got.mpii_people or "complete",
        split_seed=got.split_seed or 0,
        head_size=got.head_size or "neck",
        skip_unreadable=got.skip_unreadable,
        figures=got.figures or "full",
        output=got.output or new_folder(Path("runs"), "deeppose"),
        cache=got.cache or Path("runs") / "cache",
        resume=got.resume,
        inits=inits,
        layers=got.init_layers,
        fractions=tuple(sorted(set(got.label_fraction))),
        preset=preset,
        shape=shape,
        recipe=recipe,
        seeds=tuple(dict.fromkeys(got.seed)),
        device=device,
        workers=got.workers,
        progress=not got.quiet,
    )


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0], formatter_class=Help)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-root", type=Path,
        help="Leeds Sports Pose: images/ with joints.npz (crops) or joints.mat (the release); or a folder of "
        "drawn figures; without: they are drawn",
    )  # fmt: skip
    data.add_argument("--extra-root", type=Path, help="its extended training set, learned from as well")
    data.add_argument("--mpii-annotations", type=Path, help="MPII instead: mpii_human_pose_v1_u12_1.mat")
    data.add_argument("--mpii-images", type=Path, help="the folder of its images")
    data.add_argument(
        "--mpii-people", choices=("complete", "all"),
        help="those with all 16 joints, or everybody; default: complete",
    )  # fmt: skip
    data.add_argument("--split-seed", type=int, help="of MPII's people to test on; default: 0")
    data.add_argument(
        "--head-size", choices=("neck", "box"),
        help="what MPII's PCKh is measured by: neck to head top (the paper), or the head box (official); "
        "default: neck",
    )  # fmt: skip
    data.add_argument("--skip-unreadable", action="store_true", help="count unreadable images and go on")
    add_figures(data)
    run = parser.add_argument_group("run")
    run.add_argument(
        "--init", nargs="+", action="append", metavar=("KIND", "FILE"),
        help="what to begin from, once for each: random; posets FILE [NAME], a checkpoint.pt of a benchmark; "
        "imagenet FILE, torchvision's weights; default: random",
    )  # fmt: skip
    run.add_argument(
        "--init-layers", choices=alexnet.LAYERS, default="fc7", help="the last layer taken from such files"
    )
    run.add_argument(
        "--label-fraction", type=float, nargs="+", default=[0.01, 0.1, 1.0],
        help="parts of the people to learn from; each holds the smaller ones",
    )  # fmt: skip
    run.add_argument("--output", type=Path, help="default: a new folder under runs/")
    run.add_argument("--cache", type=Path, help="decoded images; default: runs/cache")
    run.add_argument("--resume", action="store_true", help="go on with the run in --output")
    run.add_argument("--seed", type=int, nargs="+", default=[0])
    run.add_argument("--device", default="auto")
    run.add_argument(
        "--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes that load images"
    )
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    choices = parser.add_argument_group("recipe", "each overrides the preset")
    choices.add_argument(
        "--preset", choices=tuple(PRESETS), help="default: small; figures where they are drawn"
    )
    options: dict[str, dict[str, Any]] = {
        "image_size": {"type": int},
        "batch_norm": {"action": argparse.BooleanOptionalAction},
        "fc_dim": {"type": int},
        "iterations": {"type": int},
        "batch_size": {"type": int},
        "lr": {"type": float},
        "optimizer": {"choices": ("adamw", "adagrad", "sgd")},
        "schedule": {"choices": ("constant", "cosine")},
        "weight_decay": {"type": float},
        "dropout": {"type": float},
        "freeze": {"type": int},
        "scale": {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")},
        "shift": {"type": float},
        "mean_pose": {"action": argparse.BooleanOptionalAction},
        "precision": {"choices": ("auto", "float32", "bfloat16")},
    }
    for name, option in options.items():
        values = {key: getattr(both[name not in SHAPE], name) for key, both in PRESETS.items()}
        if name == "precision":
            values = dict.fromkeys(PRESETS, "auto")
        text = ", ".join(f"{key} {value}" for key, value in values.items())
        flag = "--" + name.replace("_", "-")
        choices.add_argument(flag, dest=name, default=argparse.SUPPRESS, help=f"presets: {text}", **option)
    return parser


def _check(got: argparse.Namespace) -> None:
    """See that the values fit together."""
    check_figures(got)
    if (got.mpii_annotations is None) != (got.mpii_images is None):
        raise ValueError("--mpii-annotations and --mpii-images belong together: give both")
    of_mpii = got.mpii_annotations is not None
    if of_mpii and (got.data_root is not None or got.figures is not None):
        raise ValueError("--mpii-annotations stands in place of --data-root and --figures: give one of them")
    for name in ("mpii_people", "split_seed", "head_size"):
        if getattr(got, name) is not None and not of_mpii:
            raise ValueError(f"--{name.replace('_', '-')} is for --mpii-annotations")
    if got.extra_root is not None and got.data_root is None:
        raise ValueError("--extra-root is learned from beside --data-root: give that too")
    if got.skip_unreadable and got.data_root is None and not of_mpii:
        raise ValueError("--skip-unreadable is for a --data-root or MPII: drawn figures can be read")
    if min(*got.seed, got.split_seed or 0) < 0:
        raise ValueError(f"--seed and --split-seed must be 0 or more, got {got.seed} and {got.split_seed}")
    if got.workers < 0:
        raise ValueError(f"--workers must be 0 or more, got {got.workers}")
    if got.resume and got.output is None:
        raise ValueError("--resume needs --output, the folder of the run to go on with")
    wrong = [fraction for fraction in got.label_fraction if not 0 < fraction <= 1]
    if wrong:
        raise ValueError(f"--label-fraction must lie above 0 and up to 1, got {wrong[0]:g}")


def _inits(given: Sequence[Sequence[str]]) -> tuple[Init, ...]:
    """What the regressors begin from.

    Raises:
        ValueError: for an unknown kind, a file that is not there, or a name that is used twice.
    """
    found = []
    for words in given:
        kind, rest = words[0], list(words[1:])
        if kind not in KINDS:
            raise ValueError(f"--init must be one of {', '.join(KINDS)}, got {kind!r}")
        most = {"random": 0, "posets": 2, "imagenet": 1}[kind]
        if not min(1, most) <= len(rest) <= most:
            form = {"random": "random", "posets": "posets FILE [NAME]", "imagenet": "imagenet FILE"}[kind]
            raise ValueError(f"--init {' '.join(words)}: expected --init {form}")
        path = Path(rest[0]) if rest else None
        if path is not None and not path.is_file():
            raise ValueError(f"--init {kind}: there is no file {path}")
        name = rest[1] if len(rest) > 1 else kind
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"--init: a name is of letters, digits, _ . and -, got {name!r}")
        found.append(Init(name, kind, path))  # type: ignore[arg-type]
    names = [init.name for init in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"--init: {', '.join(twice)} is there twice; give the second a name of its own: posets FILE NAME"
        )
    return tuple(found)
