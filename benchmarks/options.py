"""The command line of the benchmarks, checked before any work is done."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from . import alexnet, common
from .learning import METHODS, PRESETS, Recipe

UNTRAINED = ("hog", "hog-lda", "start", "random")
EVERY_METHOD = (*UNTRAINED, "alexnet-imagenet", *METHODS, "posets-fixed")


@dataclass(frozen=True)
class RunOptions:
    """What a run was asked for; see the command's --help."""

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
            return replace(self.recipe, image_size=self.recipe.image_size, batch_norm=False, fc_dim=4096)
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
    parser = argparse.ArgumentParser(
        description=description.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-root", type=Path, help="a tree in the Olympic Sports layout; without: drawn figures"
    )
    data.add_argument("--categories", nargs="+", help="use these categories only")
    data.add_argument("--skip-unreadable", action="store_true", help="count unreadable images and go on")
    data.add_argument("--figures", choices=("full", "tiny"), default="full", help="size of the drawn data")
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
    first.add_argument("--initial", choices=("hog-lda", "hog", "hog-window"), default="hog-window")
    first.add_argument(
        "--window", type=float, nargs=2, metavar=("X", "Y"), default=(0.2, 0.6),
        help="standard deviations of the window, as parts of the image's sides",
    )  # fmt: skip
    first.add_argument("--hog-size", type=int, default=96, help="side of the images HOG sees, px")
    first.add_argument(
        "--components", type=int, default=256, help="principal directions of HOG that are kept"
    )
    recipe = parser.add_argument_group("recipe", "each overrides the preset")
    recipe.add_argument(
        "--preset", choices=tuple(PRESETS), help="default: small; figures without --data-root"
    )
    _add_recipe_options(recipe)
    got = parser.parse_args(arguments)

    preset = got.preset or ("figures" if got.data_root is None else "small")
    given = {f.name: getattr(got, f.name) for f in fields(Recipe) if getattr(got, f.name) is not None}
    if "scale" in given:
        given["scale"] = tuple(given["scale"])
    device = common.pick_device(got.device)
    chosen = replace(PRESETS[preset], **given)
    if chosen.precision == "auto":
        chosen = replace(chosen, precision=fast_precision(device))
    seeds = tuple(got.seed) if got.seed else ((0, 1, 2) if got.data_root is None else (0,))
    if min(seeds) < 0:
        raise ValueError(f"--seed must be 0 or more, got {min(seeds)}")
    if got.workers < 0:
        raise ValueError(f"--workers must be 0 or more, got {got.workers}")
    if got.resume and got.output is None:
        raise ValueError("--resume needs --output, the folder of the run to go on with")
    methods = tuple(dict.fromkeys(got.method or ("hog-lda", "start", "random", "posets")))
    if "all" in methods:
        methods = tuple(m for m in EVERY_METHOD if m != "alexnet-imagenet" or got.imagenet_weights)
    if "alexnet-imagenet" in methods and got.imagenet_weights is None:
        raise ValueError(
            "--method alexnet-imagenet needs --imagenet-weights FILE (torchvision's alexnet .pth)"
        )
    return RunOptions(
        data_root=got.data_root,
        categories=tuple(got.categories) if got.categories else None,
        skip_unreadable=got.skip_unreadable,
        figures=got.figures,
        output=got.output or _new_folder(Path("runs"), "olympic"),
        cache=got.cache or Path("runs") / "cache",
        resume=got.resume,
        methods=methods,
        layer=got.layer,
        initial=got.initial,
        window=tuple(got.window) if got.initial == "hog-window" else None,
        hog_size=got.hog_size,
        components=got.components,
        preset=preset,
        recipe=chosen,
        seeds=seeds,
        device=device,
        workers=got.workers,
        init=got.init,
        imagenet_weights=got.imagenet_weights,
        score_rounds=not got.no_round_scores,
        progress=not got.quiet,
    )


def fast_precision(device: str) -> str:
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
    flags = {"lam": "--lambda"}
    for field in fields(Recipe):
        flag = flags.get(field.name, "--" + field.name.replace("_", "-"))
        values = ", ".join(f"{name} {getattr(recipe, field.name)}" for name, recipe in PRESETS.items())
        extra = options.get(field.name)
        if extra is None:
            if isinstance(field.default, bool):
                extra = {"action": argparse.BooleanOptionalAction}
            else:
                extra = {"type": float if "float" in str(field.type) else int}
        group.add_argument(flag, dest=field.name, default=None, help=f"presets: {values}", **extra)


def _new_folder(parent: Path, name: str) -> Path:
    number = 1
    while (folder := parent / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder
