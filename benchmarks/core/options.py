"""The command line of the benchmarks: arguments to options, checked before any work is done.

Nothing here imports torch, unless a file or a device is to be looked at: --help answers at once.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.core.methods import METHODS, NETWORKS, recipe_of
from benchmarks.core.recipes import PRESETS, AlexNetConfig, Recipe, TrunkConfig, flag

if TYPE_CHECKING:
    import torch

LAYERS = ("pool5", "fc6", "fc7", "pooled", "embedding")
FIRST = ("hog-lda", "hog", "hog-window", "hog-views")  # first similarities
IMAGENET = AlexNetConfig()  # torchvision's shapes
WINDOW = (0.2, 0.6)
FILES = {"alexnet-imagenet": "--imagenet-weights", "checkpoint": "--checkpoint"}  # a method to what it needs
FIGURE_SIZES: dict[str, dict[str, Any]] = {  # of `figures.make_figures`
    "full": {},
    "tiny": {"num_sources": 4, "num_clips": 1, "num_frames": 10, "num_anchors": 8},
}


@dataclass(frozen=True)
class CommandLine:
    """What is particular to the command line of a benchmark.

    Args:
        name: of the benchmark, of its folders under runs/.
        examples: commands, for --help.
        layer: that is scored by default; with a trunk other than AlexNet pool5 is "pooled", any other
            "embedding".
        plain: its methods without a network, which leave nothing to chance.
        learned: its methods that train.
        default: the methods that run when none is asked for.
        networks: its methods with a network that is not trained.
        first: its first similarities, unless the preset is the paper's.
        recipe: fields of the recipe that differ from every preset.
        data: its arguments about data: name to `add_argument`'s options.
        draws: without --data-root figures are drawn.
    """

    name: str
    examples: Sequence[str]
    layer: str
    plain: tuple[str, ...]
    learned: tuple[str, ...]
    default: tuple[str, ...]
    networks: tuple[str, ...] = NETWORKS
    first: str = "hog-window"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    draws: bool = True

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method, in the order of the tables."""
        return (*self.plain, *self.networks, *self.learned)

    def layer_of(self, trunk: str) -> str:
        """The layer that is scored by default."""
        if trunk == "alexnet" or self.layer in ("pooled", "embedding"):
            return self.layer
        return "pooled" if self.layer == "pool5" else "embedding"


@dataclass(frozen=True)
class Options:
    """What a benchmark is asked for; see a command's --help.

    Args:
        line: the benchmark's.
        data: its arguments about data, by name.
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
            size, width = IMAGENET.image_size, IMAGENET.fc_dim
            return replace(self.recipe, trunk="alexnet", image_size=size, batch_norm=False, fc_dim=width)
        if method == "checkpoint":
            from benchmarks.core.networks import architecture_of

            shape = {"trunk": "alexnet", **architecture_of(self.files[method]).settings()}
            names = ("trunk", "image_size", "batch_norm", "fc_dim")
            return replace(self.recipe, **{name: shape[name] for name in names if name in shape})
        return recipe_of(method, self.recipe)

    def settled(self, device: str) -> Options:
        """The same for a device, in the precision that is fast there."""
        recipe = self.recipe
        if recipe.precision == "auto":
            recipe = replace(recipe, precision=fast_precision(device))
        return replace(self, device=device, recipe=recipe)

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
    """Read and check a command line.

    Args:
        line: of the benchmark.
        description: heads the help.
        arguments: Default: those of the process.

    Raises:
        ValueError: for values that do not fit together.
        SystemExit: by argparse, for unknown options and for --help.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    got = _parser(line, (description or "").strip()).parse_args(expand_set(given))
    drawn = line.draws and got.data_root is None
    preset = got.preset or ("figures" if drawn else "small")
    changes = {one.name: getattr(got, one.name) for one in fields(Recipe) if hasattr(got, one.name)}
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    for option, path in (("--init", got.init), *((o, getattr(got, _name(o))) for o in FILES.values())):
        if path is not None and not path.is_file():
            raise ValueError(f"{option}: there is no file {path}")
    recipe = replace(PRESETS[preset], **{**line.recipe, **changes})
    files = {method: getattr(got, _name(option)) for method, option in FILES.items()}
    files = {method: path for method, path in files.items() if path is not None}
    methods = tuple(dict.fromkeys(got.method or line.default))
    if "all" in methods:
        left_out = {m for m in FILES if m not in files} | ({"init"} if got.init is None else set())
        methods = tuple(m for m in line.methods if m not in left_out)
    first = got.first or ("hog-lda" if preset == "paper" else line.first)
    options = Options(
        line=line,
        data=argparse.Namespace(**{_name(name): getattr(got, _name(name)) for name in _data(line)}),
        output=got.output or new_folder(Path("runs"), line.name),
        cache=got.cache or Path("runs") / "cache",
        resume=got.resume,
        methods=methods,
        layer=got.layer or line.layer_of(recipe.trunk),
        instance_lda=got.instance_lda,
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
    _check(got, options)
    return options


def expand_set(arguments: Sequence[str]) -> list[str]:
    """`--set name=value other=value` as the options they stand for: --name value, --no-name for a bool.

    Raises:
        ValueError: for what is no name=value, or no setting; `--set help` ends with a list of all.
    """
    known = {one.name: one for one in fields(Recipe)} | {flag(one.name)[2:]: one for one in fields(Recipe)}
    known |= {name.replace("-", "_"): one for name, one in known.items()}
    found: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word != "--set":
            found.append(word)
            continue
        while rest and not rest[0].startswith("--"):
            setting = rest.pop(0)
            if setting == "help":
                print(_all_settings())
                raise SystemExit(0)
            name, equals, value = setting.partition("=")
            if not equals or name not in (*known, *_TRIALS):
                raise ValueError(f"--set {setting}: give name=value; --set help lists the names")
            one = known.get(name)
            option = f"--{name.replace('_', '-')}" if one is None else flag(one.name)
            if one is not None and isinstance(one.default, bool):
                if value not in ("yes", "no"):
                    raise ValueError(f"--set {name} must be yes or no, got {value!r}")
                found.append(option if value == "yes" else f"--no-{option[2:]}")
            else:
                found += [option, *value.split(",")]
    return found


def add_recipe_options(parser: argparse.ArgumentParser, names: Mapping[str, Any]) -> None:
    """An option for each field of `Recipe`, without a default: the preset's is kept. Groups: by title."""
    for one in fields(Recipe):
        about = one.metadata
        extra: dict[str, Any] = {"help": argparse.SUPPRESS}
        if about["group"]:
            small, paper = (_shown(one, PRESETS[preset]) for preset in ("small", "paper"))
            values = small if small == paper else f"{small}, paper {paper}"
            extra["help"] = about["says"] + (f" [{values}]" if values != "-" else "")
        if isinstance(one.default, bool):
            extra["action"] = argparse.BooleanOptionalAction
        elif isinstance(one.default, tuple):
            pair = len(one.default) == 2
            extra |= {"nargs": 2 if pair else "+", "type": float if pair else str}
            extra["metavar"] = ("LOW", "HIGH") if pair else "PATTERN"
        elif about["values"]:
            extra["choices"] = about["values"]
        else:
            kind = str if one.type == "str" else float if "float" in str(one.type) else int
            extra |= {"type": kind, "metavar": {str: "NAME", float: "X", int: "N"}[kind]}
        target = names.get(about["group"], parser)
        target.add_argument(flag(one.name), dest=one.name, default=argparse.SUPPRESS, **extra)


def new_folder(parent: Path, name: str) -> Path:
    """The first of parent/name, parent/name-2, ... that does not exist yet; it is not made."""
    number = 1
    while (folder := parent / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder


def fast_precision(device: str) -> Literal["float32", "bfloat16"]:
    """bfloat16 where the hardware multiplies it fast (a GPU, a CPU with AMX), else float32."""
    if device.startswith("cuda"):
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    flags = Path("/proc/cpuinfo")
    return "bfloat16" if flags.is_file() and " amx_bf16" in flags.read_text() else "float32"


# --- The parser

_TRIALS = ("hog_size", "hog-size", "window", "components")  # of the first similarities, for --set


def _parser(line: CommandLine, description: str) -> argparse.ArgumentParser:
    methods = "\n".join(
        f"  {name:18s} {METHODS[name].says}{'*' if name in line.default else ''}" for name in line.methods
    )
    examples = "\n".join(f"  {example}" for example in line.examples)
    parser = argparse.ArgumentParser(
        prog=f"{line.name}.py",
        usage="%(prog)s [options]",
        description=f"{description}\n\nexamples:\n{examples}",
        epilog=f"methods (* by default):\n{methods}",
        formatter_class=_Help,
    )
    data = parser.add_argument_group("data")
    for name, about in _data(line).items():
        data.add_argument(f"--{name}", **about)
    what = parser.add_argument_group("what is compared")
    add = what.add_argument
    add("--method", nargs="+", choices=(*line.methods, "all"), metavar="METHOD", help="see below, or all")
    add(
        "--seed", type=int, nargs="+", metavar="N", help="a row each; default: 0 1 2 on drawn figures, else 0"
    )
    other = line.layer_of("resnet18")
    add("--layer", choices=LAYERS, help=f"whose features are scored; default: {line.layer}, or {other}")
    add("--instance-lda", action="store_true", help="score an InstanceLDA of that layer, learned from views")
    add("--no-round-scores", action="store_true", help="score after the last round only, which is quicker")
    add("--checkpoint", type=Path, metavar="FILE", help="checkpoint.pt of a run, for --method checkpoint")
    add("--imagenet-weights", type=Path, metavar="FILE", help="for --method alexnet-imagenet")
    run = parser.add_argument_group("where it runs, and where results go")
    add = run.add_argument
    add("--output", type=Path, metavar="FOLDER", help="default: a new folder under runs/")
    add("--cache", type=Path, metavar="FOLDER", help="decoded images and HOG; default: runs/cache")
    add("--resume", action="store_true", help="go on with the run in --output, or add methods to it")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--workers", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="that load images")
    add("--quiet", action="store_true", help="no progress bars")
    first = parser.add_argument_group("what training starts from")
    add = first.add_argument
    says = f"default: {line.first}; hog-lda with the preset paper"
    add("--first-similarities", dest="first", choices=FIRST, help=f"of the images; {says}")
    add("--initial", dest="first", choices=FIRST, help=argparse.SUPPRESS)
    add("--init", type=Path, metavar="FILE", help="ImageNet weights of the trunk, as torchvision has them")
    add("--window", type=float, nargs=2, metavar=("X", "Y"), help=argparse.SUPPRESS)
    add("--hog-size", type=int, default=96, help=argparse.SUPPRESS)
    add("--components", type=int, help=argparse.SUPPRESS)
    network = parser.add_argument_group("network")
    learning = parser.add_argument_group(
        "learning", "each option overrides the preset; in brackets small's value, and the paper's"
    )
    learning.add_argument(
        "--preset", choices=tuple(PRESETS), help="paper: its values; default: small, or figures if drawn"
    )
    learning.add_argument(
        "--set", nargs="+", metavar="NAME=VALUE", help="settings for trials; --set help lists all"
    )
    add_recipe_options(parser, {"network": network, "learning": learning})
    return parser


def _data(line: CommandLine) -> dict[str, Mapping[str, Any]]:
    """The arguments about data: the benchmark's, and those that several have."""
    found = dict(line.data)
    found["skip-unreadable"] = {"action": "store_true", "help": "count unreadable images and leave them out"}
    if line.draws:
        found["figures"] = {"choices": tuple(FIGURE_SIZES), "help": "size of the drawn data; default: full"}
    return found


def _all_settings() -> str:
    header = f"{'name':20s} {' '.join(f'{name:>12s}' for name in PRESETS)}  what it does"
    lines = [
        f"{flag(one.name)[2:].replace('-', '_'):20s} "
        f"{' '.join(f'{_shown(one, recipe):>12s}' for recipe in PRESETS.values())}  {one.metadata['says']}"
        for one in fields(Recipe)
    ]
    trials = {
        "hog_size": "side of the images that HOG sees, a multiple of 8; default: 96",
        "window": "x,y: deviations of hog-window, as parts of the image's sides; default: 0.2,0.6",
        "components": "principal directions of HOG that are kept, 0: all; default: 256, paper 0",
    }
    more = [f"{name:20s} {'':51s}  {says}" for name, says in trials.items()]
    return "\n".join([header, *lines, *more])


def _shown(one: Field[Any], recipe: Recipe) -> str:
    value = getattr(recipe, one.name)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        ",".join(map(str, value)) or "-" if isinstance(value, tuple) else "-" if value is None else str(value)
    )


class _Help(argparse.RawDescriptionHelpFormatter):
    """Lines of the description as they are; wide enough for one line an option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=118)


def _name(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


# --- What does not fit together


def _check(got: argparse.Namespace, options: Options) -> None:
    """See that the values fit together, before any work is done."""
    for check in (_check_data, _check_numbers, _check_files, _check_network):
        check(got, options)


def _check_data(got: argparse.Namespace, options: Options) -> None:
    drawn = options.line.draws and got.data_root is None
    if options.line.draws and not drawn and got.figures is not None:
        raise ValueError("--figures are drawn where there is no --data-root: leave one of them out")
    if drawn and got.skip_unreadable:
        raise ValueError("--skip-unreadable is for a --data-root: drawn figures can be read")
    if got.resume and got.output is None:
        raise ValueError("--resume needs --output, the folder of the run to go on with")


def _check_numbers(got: argparse.Namespace, options: Options) -> None:
    if min(options.seeds) < 0:
        raise ValueError(f"--seed must be 0 or more, got {min(options.seeds)}")
    for name in ("workers", "components"):
        if getattr(options, name) < 0:
            raise ValueError(f"--{name} must be 0 or more, got {getattr(options, name)}")
    if got.hog_size < 16 or got.hog_size % 8:
        raise ValueError(f"--hog-size must be a multiple of 8 from 16, got {got.hog_size}")
    if got.window is not None:
        if options.first != "hog-window":
            raise ValueError(
                f"--window is for --first-similarities hog-window, which is {options.first} here"
            )
        if not all(0 < part < math.inf for part in got.window):
            raise ValueError(f"--window must be two numbers above 0, got {got.window[0]:g} {got.window[1]:g}")
    if options.device not in ("auto", "cpu"):
        from benchmarks.core.common import pick_device

        pick_device(options.device)


def _check_files(got: argparse.Namespace, options: Options) -> None:
    for method, option in FILES.items():
        if method in options.methods and method not in options.files:
            kind = "torchvision's alexnet .pth" if method == "alexnet-imagenet" else "checkpoint.pt of a run"
            raise ValueError(f"--method {method} needs {option} FILE ({kind})")
        if method in options.files and method not in options.methods:
            hint = "; to begin from them: --init FILE" if method == "alexnet-imagenet" else ""
            raise ValueError(f"{option} is for --method {method}{hint}")
    if "init" in options.methods and got.init is None:
        raise ValueError(f"--method init needs --init FILE (torchvision's weights of {options.recipe.trunk})")


def _check_network(got: argparse.Namespace, options: Options) -> None:
    trunk, config = options.recipe.trunk, options.recipe.architecture
    if trunk != "alexnet" and options.layer in LAYERS[:3]:
        raise ValueError(f"--layer {options.layer} is AlexNet's: of --trunk {trunk} take pooled or embedding")
    if trunk != "alexnet" and "alexnet-imagenet" in options.methods:
        raise ValueError(
            f"--method alexnet-imagenet goes with --trunk alexnet; for weights of {trunk}: --init FILE"
        )
    if got.init is None:
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
