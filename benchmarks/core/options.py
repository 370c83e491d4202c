"""The command line of the benchmarks, checked before any work is done."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.core import alexnet, common, trunks
from benchmarks.core.recipes import PRESETS, Recipe, flag
from benchmarks.core.trained import architecture_of

LEARNED = ("posets", "cliques", "triplet", "ntxent", "posets-fixed")
COMBINATIONS = ("posets+rotation", "kmeans+poset-loss", "surrogate+ms", "kmeans+ntxent", "ntxent+feature")
PLAIN = ("hog", "hog-lda", "hog-views", "start")  # no network
NETWORKS = ("random", "alexnet-imagenet", "checkpoint")  # networks that are not trained here
EVERY_METHOD = (*PLAIN, *NETWORKS, *LEARNED)
FILES = {"alexnet-imagenet": "--imagenet-weights", "checkpoint": "--checkpoint"}  # a method to what it needs
NOT_TRAINED = ("alexnet-imagenet", "checkpoint")  # nor left to chance
INITIAL = ("hog-lda", "hog", "hog-window", "hog-views")
IMAGENET = alexnet.AlexNetConfig()  # torchvision's shapes
WINDOW = (0.2, 0.6)
FIGURE_SIZES: dict[str, dict[str, Any]] = {  # of `figures.make_figures`
    "full": {},
    "tiny": {"num_sources": 4, "num_clips": 1, "num_frames": 10, "num_anchors": 8},
}


@dataclass(frozen=True)
class CommandLine:
    """What a benchmark's command line begins with.

    Args:
        name: of the benchmark, of its folders under runs/.
        layer: that is scored by default; with a trunk of torchvision pool5 is "pooled", another "embedding".
        plain: its methods without a network, which leave nothing to chance.
        default: the methods that run when none is asked for.
        networks: its methods with a network that is not trained; "init" is that of --init.
        learned: its methods that train: of `methods.METHODS`, or "posets-fixed".
        initial: its first similarities, unless the preset is the paper's.
    """

    name: str
    layer: trunks.Layer
    plain: tuple[str, ...] = PLAIN
    default: tuple[str, ...] = ("hog-lda", "start", "random", "posets")
    networks: tuple[str, ...] = NETWORKS
    learned: tuple[str, ...] = LEARNED
    initial: str = "hog-window"

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method, in the order of the tables."""
        return (*self.plain, *self.networks, *self.learned)

    def layer_of(self, trunk: str) -> trunks.Layer:
        """The layer that is scored by default."""
        if trunk == "alexnet" or self.layer in ("pooled", "embedding"):
            return self.layer
        return "pooled" if self.layer == "pool5" else "embedding"


@dataclass(frozen=True)
class RunOptions:
    """What every benchmark is asked for; see a command's --help.

    `line` is the benchmark's, `preset` and `recipe` say how it learns.
    """

    line: CommandLine
    output: Path
    cache: Path
    resume: bool
    methods: tuple[str, ...]
    layer: trunks.Layer
    instance_lda: bool
    initial: str
    window: tuple[float, float] | None
    hog_size: int
    components: int
    preset: str
    recipe: Recipe
    seeds: tuple[int, ...]
    device: str
    workers: int
    init: Path | None
    files: Mapping[str, Path] = field(hash=False)
    score_rounds: bool
    progress: bool

    def recipe_of(self, method: str) -> Recipe:
        """The recipe of a method: the shapes of given weights, fixed groups where asked for."""
        if method == "alexnet-imagenet":
            size, width = IMAGENET.image_size, IMAGENET.fc_dim
            return replace(self.recipe, trunk="alexnet", image_size=size, batch_norm=False, fc_dim=width)
        if method == "checkpoint":
            shape = trunks.settings(architecture_of(self.files[method]))
            names = ("trunk", "image_size", "batch_norm", "fc_dim")
            return replace(self.recipe, **{name: shape[name] for name in names if name in shape})
        return replace(self.recipe, regroup="fixed") if method == "posets-fixed" else self.recipe

    @property
    def amp(self) -> torch.dtype | Literal[False]:
        """What features are computed in."""
        return torch.bfloat16 if self.recipe.precision == "bfloat16" else False


def parser_of(line: CommandLine, description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has; a benchmark adds those of its data.

    Args:
        line: of the benchmark.
        description: its first paragraph heads the help.
    """
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0], formatter_class=Help)
    run = parser.add_argument_group("run")
    run.add_argument(
        "--method", nargs="+", choices=(*line.methods, "all"), help=f"default: {' '.join(line.default)}"
    )
    run.add_argument("--output", type=Path, help="default: a new folder under runs/")
    run.add_argument("--cache", type=Path, help="decoded images and HOG; default: runs/cache")
    run.add_argument("--resume", action="store_true", help="go on with the run in --output")
    run.add_argument("--seed", type=int, nargs="+", help="default: 0 1 2 on drawn figures, else 0")
    run.add_argument("--device", default="auto")
    run.add_argument(
        "--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes that load images"
    )
    run.add_argument(
        "--layer", choices=trunks.LAYERS,
        help=f"whose features are scored; default: {line.layer}, of another trunk than AlexNet "
        f"{line.layer_of('resnet18')}",
    )  # fmt: skip
    run.add_argument(
        "--instance-lda", action="store_true",
        help="score an InstanceLDA of that layer, learned from views of the images to learn from",
    )  # fmt: skip
    run.add_argument("--no-round-scores", action="store_true", help="score after the last round only")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    run.add_argument("--init", type=Path, help="begin from torchvision's ImageNet weights in this file")
    run.add_argument("--imagenet-weights", type=Path, help="file for --method alexnet-imagenet")
    run.add_argument(
        "--checkpoint", type=Path, help="checkpoint.pt of another run, scored by --method checkpoint"
    )
    first = parser.add_argument_group("first similarities")
    first.add_argument(
        "--initial", choices=INITIAL, help=f"default: {line.initial}; hog-lda with the preset paper"
    )
    first.add_argument(
        "--window", type=float, nargs=2, metavar=("X", "Y"),
        help="standard deviations of hog-window, as parts of the image's sides; default: 0.2 0.6",
    )  # fmt: skip
    first.add_argument("--hog-size", type=int, default=96, help="side of the images HOG sees, px")
    first.add_argument(
        "--components", type=int,
        help="principal directions of HOG that are kept, 0: HOG as it is; default: 256, 0 with preset paper",
    )  # fmt: skip
    choices = parser.add_argument_group("recipe", "each overrides the preset")
    choices.add_argument(
        "--preset", choices=tuple(PRESETS), help="default: small; figures where they are drawn"
    )
    _add_recipe_options(choices)
    return parser


def settle(line: CommandLine, got: argparse.Namespace, drawn: bool) -> dict[str, Any]:
    """The arguments of `RunOptions`, checked before any work is done.

    Args:
        line: of the benchmark.
        got: what its parser found.
        drawn: True: it runs on drawn figures.

    Raises:
        ValueError: for values that do not fit together.
    """
    preset = got.preset or ("figures" if drawn else "small")
    initial = got.initial or ("hog-lda" if preset == "paper" else line.initial)
    components = got.components if got.components is not None else (0 if preset == "paper" else 256)
    device = common.pick_device(got.device)
    given = {one.name: getattr(got, one.name) for one in fields(Recipe) if hasattr(got, one.name)}
    if "scale" in given:
        given["scale"] = tuple(given["scale"])
    recipe = replace(PRESETS[preset], **given)
    if recipe.precision == "auto":
        recipe = replace(recipe, precision=fast_precision(device))
    files = {method: getattr(got, option[2:].replace("-", "_")) for method, option in FILES.items()}
    files = {method: path for method, path in files.items() if path is not None}
    methods = tuple(dict.fromkeys(got.method or line.default))
    if "all" in methods:
        left_out = {m for m in FILES if m not in files} | ({"init"} if got.init is None else set())
        methods = tuple(m for m in line.methods if m not in left_out)
    layer = got.layer or line.layer_of(recipe.trunk)
    _check_layer(layer, methods, recipe)
    _check_init(got, methods, recipe)
    _check(got, methods, files, initial, components)
    return {
        "line": line,
        "output": got.output or new_folder(Path("runs"), line.name),
        "cache": got.cache or Path("runs") / "cache",
        "resume": got.resume,
        "methods": methods,
        "layer": layer,
        "instance_lda": got.instance_lda,
        "initial": initial,
        "window": tuple(got.window or WINDOW) if initial == "hog-window" else None,
        "hog_size": got.hog_size,
        "components": components,
        "preset": preset,
        "recipe": recipe,
        "seeds": tuple(dict.fromkeys(got.seed or ((0, 1, 2) if drawn else (0,)))),
        "device": device,
        "workers": got.workers,
        "init": got.init,
        "files": files,
        "score_rounds": not got.no_round_scores,
        "progress": not got.quiet,
    }


def add_figures(group: Any) -> None:
    """The option of benchmarks that can draw their data."""
    group.add_argument("--figures", choices=FIGURE_SIZES, help="size of the drawn data; default: full")


def check_figures(got: argparse.Namespace) -> None:
    """See that figures were asked for only where they are drawn.

    Raises:
        ValueError: if not.
    """
    if got.data_root is not None and got.figures is not None:
        raise ValueError("--figures are drawn where there is no --data-root: leave one of them out")


def _check(
    got: argparse.Namespace,
    methods: Sequence[str],
    files: Mapping[str, Path],
    initial: str,
    components: int,
) -> None:
    """See that the values fit together, before any work is done."""
    if min(got.seed or [0]) < 0:
        raise ValueError(f"--seed must be 0 or more, got {min(got.seed)}")
    if got.workers < 0:
        raise ValueError(f"--workers must be 0 or more, got {got.workers}")
    if components < 0:
        raise ValueError(f"--components must be 0 or more, got {components}")
    if got.hog_size < 16 or got.hog_size % 8:
        raise ValueError(f"--hog-size must be a multiple of 8 from 16, got {got.hog_size}")
    if got.window is not None and initial != "hog-window":
        raise ValueError(f"--window is for --initial hog-window, which is {initial} here")
    if got.window is not None and not all(0 < part < math.inf for part in got.window):
        raise ValueError(f"--window must be two numbers above 0, got {got.window[0]:g} {got.window[1]:g}")
    if got.resume and got.output is None:
        raise ValueError("--resume needs --output, the folder of the run to go on with")
    for method, option in FILES.items():
        if method in methods and method not in files:
            kind = "torchvision's alexnet .pth" if method == "alexnet-imagenet" else "checkpoint.pt of a run"
            raise ValueError(f"--method {method} needs {option} FILE ({kind})")
        if method in files and method not in methods:
            hint = "; to begin from them: --init FILE" if method == "alexnet-imagenet" else ""
            raise ValueError(f"{option} is for --method {method}{hint}")
    for option, path in (("--init", got.init), *((FILES[method], path) for method, path in files.items())):
        if path is not None and not path.is_file():
            raise ValueError(f"{option}: there is no file {path}")


def _check_layer(layer: str, methods: Sequence[str], recipe: Recipe) -> None:
    """See that the networks have the layer."""
    if recipe.trunk != "alexnet" and layer in alexnet.LAYERS:
        raise ValueError(f"--layer {layer} is AlexNet's: of --trunk {recipe.trunk} take pooled or embedding")
    if recipe.trunk != "alexnet" and "alexnet-imagenet" in methods:
        raise ValueError(
            f"--method alexnet-imagenet goes with --trunk alexnet; for weights of {recipe.trunk}: --init FILE"
        )


def _check_init(got: argparse.Namespace, methods: Sequence[str], recipe: Recipe) -> None:
    """See that there are weights to begin from where they are wanted, and that the shapes are theirs."""
    if "init" in methods and got.init is None:
        raise ValueError(f"--method init needs --init FILE (torchvision's weights of {recipe.trunk})")
    if got.init is None:
        return
    config = recipe.architecture
    if isinstance(config, trunks.TorchvisionConfig):
        if config.small_stem:
            raise ValueError("--init needs torchvision's stem: --image-size 64 or more")
        return
    shapes, expected = alexnet.settings(config), alexnet.settings(IMAGENET)
    if any(shapes[name] != expected[name] for name in expected if name != "image_size"):
        raise ValueError(
            "--init needs a network of torchvision's shapes: "
            f"--image-size {IMAGENET.image_size} --fc-dim {IMAGENET.fc_dim} --no-batch-norm"
        )


def fast_precision(device: str) -> Literal["float32", "bfloat16"]:
    """bfloat16 where the hardware multiplies it fast (a GPU, a CPU with AMX), else float32."""
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    flags = Path("/proc/cpuinfo")
    return "bfloat16" if flags.is_file() and " amx_bf16" in flags.read_text() else "float32"


def _add_recipe_options(group: Any) -> None:
    """One option for each field of `Recipe`, without a default: the preset's stands."""
    options: dict[str, dict[str, Any]] = {
        "trunk": {"choices": trunks.TRUNKS},
        "scale": {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")},
        "anchors": {"choices": ("unassigned", "all")},
        "regroup": {"choices": ("network", "mixed", "fixed")},
        "optimizer": {"choices": ("sgd", "adamw")},
        "schedule": {"choices": ("constant", "cosine")},
        "precision": {"choices": ("auto", "float32", "bfloat16")},
    }
    for one in fields(Recipe):
        values = ", ".join(f"{name} {getattr(recipe, one.name)}" for name, recipe in PRESETS.items())
        extra = options.get(one.name)
        if extra is None:
            if isinstance(one.default, bool):
                extra = {"action": argparse.BooleanOptionalAction}
            else:
                extra = {"type": float if "float" in str(one.type) else int}
        group.add_argument(
            flag(one.name), dest=one.name, default=argparse.SUPPRESS, help=f"presets: {values}", **extra
        )


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says the defaults of those options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def new_folder(parent: Path, name: str) -> Path:
    """The first of parent/name, parent/name-2, ... that is not there yet; it is not made."""
    number = 1
    while (folder := parent / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder
