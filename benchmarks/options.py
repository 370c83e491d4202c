"""The command line of the benchmarks, checked before any work is done."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from . import alexnet, common
from .learning import METHODS, PRESETS, Recipe, flag

LEARNED = (*METHODS, "posets-fixed")
EVERY_METHOD = ("hog", "hog-lda", "start", "random", "alexnet-imagenet", *LEARNED)
INITIAL = ("hog-lda", "hog", "hog-window")
IMAGENET = alexnet.AlexNetConfig()  # torchvision's shapes
WINDOW = (0.2, 0.6)
FIGURE_SIZES: dict[str, dict[str, Any]] = {  # of `figures.make_figures`
    "full": {},
    "tiny": {"num_sources": 4, "num_clips": 1, "num_frames": 10, "num_anchors": 8},
}


@dataclass(frozen=True)
class RunOptions:
    """What a run was asked for; see the command's --help. `data_root` None: drawn figures."""

    data_root: Path | None
    categories: tuple[str, ...] | None
    skip_unreadable: bool
    figures: str
    output: Path
    cache: Path
    resume: bool
    methods: tuple[str, ...]
    layer: alexnet.Layer
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
    imagenet_weights: Path | None
    score_rounds: bool
    progress: bool

    def recipe_of(self, method: str) -> Recipe:
        """The recipe of a method: torchvision's own shapes for its weights, fixed groups where asked for."""
        if method == "alexnet-imagenet":
            size, width = IMAGENET.image_size, IMAGENET.fc_dim
            return replace(self.recipe, image_size=size, batch_norm=False, fc_dim=width)
        return replace(self.recipe, regroup="fixed") if method == "posets-fixed" else self.recipe


def parse(description: str, arguments: Sequence[str] | None) -> RunOptions:
    """Read and check the command line.

    Args:
        description: of the benchmark; its first paragraph heads the help.
        arguments: None: those of the process.

    Returns:
        The options.

    Raises:
        ValueError: for values that do not fit together.
        SystemExit: by argparse, for unknown options and for --help.
    """
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0], formatter_class=_Help)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-root", type=Path, help="a tree in the Olympic Sports layout; without: drawn figures"
    )
    data.add_argument("--categories", nargs="+", help="use these categories only")
    data.add_argument("--skip-unreadable", action="store_true", help="count unreadable images and go on")
    data.add_argument("--figures", choices=FIGURE_SIZES, help="size of the drawn data; default: full")
    run = parser.add_argument_group("run")
    run.add_argument(
        "--method", nargs="+", choices=(*EVERY_METHOD, "all"), help="default: what shows that it learns"
    )
    run.add_argument("--output", type=Path, help="default: a new folder under runs/")
    run.add_argument("--cache", type=Path, help="decoded images and HOG; default: runs/cache")
    run.add_argument("--resume", action="store_true", help="go on with the run in --output")
    run.add_argument("--seed", type=int, nargs="+", help="default: 0 1 2 on drawn figures, else 0")
    run.add_argument("--device", default="auto")
    run.add_argument(
        "--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes that load images"
    )
    run.add_argument("--layer", choices=alexnet.LAYERS, default="fc7", help="the features that are scored")
    run.add_argument("--no-round-scores", action="store_true", help="score after the last round only")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    run.add_argument("--init", type=Path, help="begin from torchvision's ImageNet weights in this file")
    run.add_argument("--imagenet-weights", type=Path, help="file for --method alexnet-imagenet")
    first = parser.add_argument_group("first similarities")
    first.add_argument(
        "--initial", choices=INITIAL, help="default: hog-window; hog-lda with the preset paper"
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
        "--preset", choices=tuple(PRESETS), help="default: small; figures without --data-root"
    )
    _add_recipe_options(choices)
    got = parser.parse_args(arguments)

    preset = got.preset or ("figures" if got.data_root is None else "small")
    initial = got.initial or ("hog-lda" if preset == "paper" else "hog-window")
    components = got.components if got.components is not None else (0 if preset == "paper" else 256)
    device = common.pick_device(got.device)
    given = {field.name: getattr(got, field.name) for field in fields(Recipe) if hasattr(got, field.name)}
    if "scale" in given:
        given["scale"] = tuple(given["scale"])
    recipe = replace(PRESETS[preset], **given)
    if recipe.precision == "auto":
        recipe = replace(recipe, precision=fast_precision(device))
    methods = tuple(dict.fromkeys(got.method or ("hog-lda", "start", "random", "posets")))
    if "all" in methods:
        methods = tuple(m for m in EVERY_METHOD if m != "alexnet-imagenet" or got.imagenet_weights)
    _check(got, methods, recipe, initial, components)
    return RunOptions(
        data_root=got.data_root,
        categories=tuple(got.categories) if got.categories else None,
        skip_unreadable=got.skip_unreadable,
        figures=got.figures or "full",
        output=got.output or _new_folder(Path("runs"), "olympic"),
        cache=got.cache or Path("runs") / "cache",
        resume=got.resume,
        methods=methods,
        layer=got.layer,
        initial=initial,
        window=tuple(got.window or WINDOW) if initial == "hog-window" else None,
        hog_size=got.hog_size,
        components=components,
        preset=preset,
        recipe=recipe,
        seeds=tuple(dict.fromkeys(got.seed or ((0, 1, 2) if got.data_root is None else (0,)))),
        device=device,
        workers=got.workers,
        init=got.init,
        imagenet_weights=got.imagenet_weights,
        score_rounds=not got.no_round_scores,
        progress=not got.quiet,
    )


def _check(
    got: argparse.Namespace, methods: Sequence[str], recipe: Recipe, initial: str, components: int
) -> None:
    """See that the values fit together, before any work is done."""
    if got.data_root is not None and got.figures is not None:
        raise ValueError("--figures are drawn where there is no --data-root: leave one of them out")
    if got.skip_unreadable and got.data_root is None:
        raise ValueError("--skip-unreadable is for a --data-root: drawn figures can be read")
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
    if "alexnet-imagenet" in methods and got.imagenet_weights is None:
        raise ValueError(
            "--method alexnet-imagenet needs --imagenet-weights FILE (torchvision's alexnet .pth)"
        )
    if got.imagenet_weights is not None and "alexnet-imagenet" not in methods:
        raise ValueError(
            "--imagenet-weights is for --method alexnet-imagenet; to begin from them: --init FILE"
        )
    shapes = alexnet.settings(recipe.architecture)
    expected = alexnet.settings(IMAGENET)
    if got.init is not None and any(
        shapes[name] != expected[name] for name in expected if name != "image_size"
    ):
        raise ValueError(
            "--init needs a network of torchvision's shapes: "
            f"--image-size {IMAGENET.image_size} --fc-dim {IMAGENET.fc_dim} --no-batch-norm"
        )
    for option, path in (("--init", got.init), ("--imagenet-weights", got.imagenet_weights)):
        if path is not None and not path.is_file():
            raise ValueError(f"{option}: there is no file {path}")


def fast_precision(device: str) -> Literal["float32", "bfloat16"]:
    """bfloat16 where the hardware multiplies it fast (a GPU, a CPU with AMX), else float32."""
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    flags = Path("/proc/cpuinfo")
    return "bfloat16" if flags.is_file() and " amx_bf16" in flags.read_text() else "float32"


def _add_recipe_options(group: Any) -> None:
    """One option for each field of `Recipe`, without a default: the preset's stands."""
    options: dict[str, dict[str, Any]] = {
        "scale": {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")},
        "anchors": {"choices": ("unassigned", "all")},
        "regroup": {"choices": ("network", "mixed", "fixed")},
        "optimizer": {"choices": ("sgd", "adamw")},
        "schedule": {"choices": ("constant", "cosine")},
        "precision": {"choices": ("auto", "float32", "bfloat16")},
    }
    for field in fields(Recipe):
        values = ", ".join(f"{name} {getattr(recipe, field.name)}" for name, recipe in PRESETS.items())
        extra = options.get(field.name)
        if extra is None:
            if isinstance(field.default, bool):
                extra = {"action": argparse.BooleanOptionalAction}
            else:
                extra = {"type": float if "float" in str(field.type) else int}
        group.add_argument(
            flag(field.name), dest=field.name, default=argparse.SUPPRESS, help=f"presets: {values}", **extra
        )


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says the defaults of those options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _new_folder(parent: Path, name: str) -> Path:
    number = 1
    while (folder := parent / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder
