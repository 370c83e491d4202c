"""What a benchmark was asked for: arguments to options, checked before any work is done.

Nothing here imports torch, unless a file or a device is to be looked at.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.core.architectures import AlexNetConfig, TrunkConfig
from benchmarks.core.cli import FIGURE_SIZES as FIGURE_SIZES
from benchmarks.core.cli import LAYERS, CommandLine, build_parser, expand_set
from benchmarks.core.methods import METHODS, recipe_of
from benchmarks.core.recipes import PRESETS, Recipe

if TYPE_CHECKING:
    import torch

IMAGENET = AlexNetConfig()  # torchvision's shapes
WINDOW = (0.2, 0.6)
FILES = {"alexnet-imagenet": "--imagenet-weights", "checkpoint": "--checkpoint"}  # a method to what it needs


@dataclass(frozen=True)
class Options:
    """What a benchmark is asked for; see a command's --help.

    Args:
        line: the benchmark's.
        data: what was given, by name; the benchmark's arguments about data are read from it.
        first, window, hog_size, components: first similarities.
        files: of methods with given weights.
        device: "auto" until `settled`.
    """

    line: CommandLine
    data: argparse.Namespace
    output: Path
    cache: Path
    resume: bool
    methods: tuple[str, ...]
    layer: str
    instance_lda: bool
    with_start: bool
    first: str
    window: tuple[float, float] | None
    hog_size: int
    components: int
    preset: str
    recipe: Recipe
    seeds: tuple[int, ...]
    device: str
    workers: int
    init: Path | None
    files: Mapping[str, Path]
    score_rounds: bool
    progress: bool

    def recipe_of(self, method: str) -> Recipe:
        """The recipe of a method: with the shapes of given weights, or what the method fixes."""
        if method == "alexnet-imagenet":
            return self.recipe.shaped_as(IMAGENET)
        if method == "checkpoint":
            from benchmarks.core.networks import architecture_of

            return self.recipe.shaped_as(architecture_of(self.files[method]))
        return recipe_of(method, self.recipe)

    def settled(self, device: str) -> Options:
        """The same for a device, in the precision that is fast there."""
        recipe = self.recipe
        if recipe.precision == "auto":
            recipe = replace(recipe, precision=fast_precision(device))
        return replace(self, device=device, recipe=recipe)

    @property
    def begins(self) -> bool:
        """True if networks know something before they are trained by weights of a file or of the trunk."""
        return self.init is not None or self.recipe.brings_weights

    @property
    def learned(self) -> list[str]:
        """Those of its methods that train."""
        return [method for method in self.methods if METHODS[method].losses]

    @property
    def amp(self) -> torch.dtype | Literal[False]:
        """What features are computed in."""
        import torch

        return torch.bfloat16 if self.recipe.precision == "bfloat16" else False


def read_arguments(
    line: CommandLine, description: str | None, arguments: Sequence[str] | None = None
) -> Options:
    """Read and check a command line, by default that of the process; the description heads its help."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    got = build_parser(line, (description or "").strip()).parse_args(expand_set(given))
    drawn = line.draws and got.data_root is None
    preset = got.preset or (line.drawn if drawn else line.preset)
    for option, path in (("--init", got.init), *((o, getattr(got, _name(o))) for o in FILES.values())):
        if path is not None and not path.is_file():
            raise ValueError(f"{option}: there is no file {path}")
    recipe = replace(PRESETS[preset], **{**line.recipe, **changes(got, PRESETS[preset])})
    files = {method: getattr(got, _name(option)) for method, option in FILES.items()}
    files = {method: path for method, path in files.items() if path is not None}
    methods = tuple(dict.fromkeys(got.method or line.default))
    if "all" in methods:
        begins = got.init is not None or recipe.brings_weights
        left_out = {m for m in FILES if m not in files} | (set() if begins else {"init"})
        left_out |= {"supervised"} if line.poses else set()  # not every tree knows its poses
        methods = tuple(m for m in line.methods if m not in left_out)
    first = got.first or ("hog-lda" if preset == "paper" else line.first)
    options = Options(
        line=line,
        data=got,
        output=got.output or new_folder(Path("runs"), line.name),
        cache=got.cache,
        resume=got.resume,
        methods=methods,
        layer=got.layer or line.layer_of(recipe.trunk),
        instance_lda=got.instance_lda,
        with_start=got.with_start,
        first=first,
        window=tuple(got.window or WINDOW) if first == "hog-window" else None,
        hog_size=got.hog_size,
        components=(0 if preset == "paper" else 256) if got.components is None else got.components,
        preset=preset,
        recipe=recipe,
        seeds=tuple(dict.fromkeys(got.seed or ((0, 1, 2) if drawn else (0,)))),
        device=got.device,
        workers=got.workers,
        init=got.init,
        files=files,
        score_rounds=not got.no_round_scores,
        progress=not got.quiet,
    )
    for check in (_check_data, _check_numbers, _check_files, _check_network):
        check(options)
    return options


def changes(got: argparse.Namespace, preset: Any) -> dict[str, Any]:
    """The fields of a recipe that were given."""
    given = {one.name: getattr(got, one.name) for one in fields(preset) if hasattr(got, one.name)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def new_folder(parent: Path, name: str) -> Path:
    """The first of parent/name, parent/name-2, ... that does not exist yet; it is not made."""
    number = 1
    while (folder := parent / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder


def fast_precision(device: str) -> Literal["float32", "bfloat16"]:
    """bfloat16 where the hardware multiplies it fast (a GPU, a CPU with AMX or AVX-512), else float32."""
    if device.startswith("cuda"):
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    flags = Path("/proc/cpuinfo")
    known = flags.read_text() if flags.is_file() else ""
    return "bfloat16" if " amx_bf16" in known or " avx512_bf16" in known else "float32"


def _name(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


# --- What does not fit together


def _check_data(options: Options) -> None:
    got = options.data
    drawn = options.line.draws and got.data_root is None
    if options.line.draws and not drawn and got.figures is not None:
        raise ValueError("--figures are drawn where there is no --data-root: leave one of them out")
    if drawn and got.skip_unreadable:
        raise ValueError("--skip-unreadable is for a --data-root: drawn figures can be read")
    if got.resume and got.output is None:
        raise ValueError("--resume needs --output, the folder of the run to go on with")


def _check_numbers(options: Options) -> None:
    for name, value in (
        ("seed", min(options.seeds)),
        ("workers", options.workers),
        ("components", options.components),
    ):
        if value < 0:
            raise ValueError(f"--{name} must be 0 or more, got {value}")
    if options.hog_size < 16 or options.hog_size % 8:
        raise ValueError(f"--hog-size must be a multiple of 8 from 16, got {options.hog_size}")
    if options.data.window is not None:
        first, (across, down) = options.first, options.data.window
        if first != "hog-window":
            raise ValueError(f"--window is for --first-similarities hog-window, which is {first} here")
        if not (0 < across < math.inf and 0 < down < math.inf):
            raise ValueError(f"--window must be two numbers above 0, got {across:g} {down:g}")
    if options.device not in ("auto", "cpu"):
        from benchmarks.core.common import pick_device

        pick_device(options.device)


def _check_files(options: Options) -> None:
    for method, option in FILES.items():
        if method in options.methods and method not in options.files:
            kind = "torchvision's alexnet .pth" if method == "alexnet-imagenet" else "checkpoint.pt of a run"
            raise ValueError(f"--method {method} needs {option} FILE ({kind})")
        if method in options.files and method not in options.methods:
            hint = "; to begin from them: --init FILE" if method == "alexnet-imagenet" else ""
            raise ValueError(f"{option} is for --method {method}{hint}")
    if "init" in options.methods and not options.begins:
        raise ValueError(
            f"--method init needs --init FILE (torchvision's weights of {options.recipe.trunk}), or a trunk "
            "that has weights"
        )


def _check_network(options: Options) -> None:
    trunk, config = options.recipe.trunk, options.recipe.architecture
    if trunk != "alexnet" and options.layer in LAYERS[:3]:
        raise ValueError(f"--layer {options.layer} is AlexNet's: of --trunk {trunk} take pooled or embedding")
    if trunk != "alexnet" and "alexnet-imagenet" in options.methods:
        raise ValueError(
            f"--method alexnet-imagenet goes with --trunk alexnet; for weights of {trunk}: --init FILE"
        )
    if options.first in ("network", "trunk") and not options.begins:
        raise ValueError(
            f"--first-similarities {options.first} needs a pretrained trunk: "
            "--trunk efficientnet-lite0, or --init FILE"
        )
    turning = [m for m in options.learned if {"rotation", "attention"} & {*METHODS[m].losses}]
    if options.recipe.cached_maps and turning:
        raise ValueError(
            f"--cached-maps does not go with --method {' '.join(turning)}, which turns or moves the images "
            "themselves: use --freeze"
        )
    if options.recipe.cached_maps and not options.recipe.mirror_images and options.first != "network":
        raise ValueError(
            "--cached-maps cannot mirror stored maps, as samples may be without mirror images of their own: "
            "use --mirror-images, or --first-similarities network"
        )
    if options.init is None:
        return
    if isinstance(config, TrunkConfig):
        if config.small_stem:
            raise ValueError("--init needs torchvision's stem: --image-size 64 or more")
        return
    shapes, expected = config.settings(), IMAGENET.settings()
    if any(shapes[name] != expected[name] for name in expected if name != "image_size"):
        raise ValueError(
            "--init needs a network of torchvision's shapes: "
            f"--image-size {IMAGENET.image_size} --fc-dim {IMAGENET.fc_dim} --no-batch-norm"
        )
