"""The parser of the benchmarks: their options in groups, --set for trials, what each method is.

Nothing here imports torch: --help answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmarks.core.common import usable_cores
from benchmarks.core.methods import METHODS, NETWORKS, WITHOUT_LABELS
from benchmarks.core.recipes import PRESETS, flag

LAYERS = ("pool5", "fc6", "fc7", "pooled", "embedding")
FIRST = ("hog-lda", "hog", "hog-window", "hog-views", "network", "trunk")  # first similarities
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
        default: the methods that run when none is asked for.
        add_data: adds its arguments about data, given `add_argument`.
        networks: its methods with a network that is not trained.
        learned: its methods that train.
        first: its first similarities, unless the preset is the paper's.
        recipe: fields of the recipe that differ from every preset.
        preset: its preset on data.
        drawn: its preset on drawn figures.
        draws: without --data-root figures are drawn.
        poses: what supervised learns are poses, where the data have them; "all" leaves it out.
    """

    name: str
    examples: Sequence[str]
    layer: str
    plain: tuple[str, ...]
    default: tuple[str, ...]
    add_data: Callable[[Callable[..., Any]], None]
    networks: tuple[str, ...] = NETWORKS
    learned: tuple[str, ...] = WITHOUT_LABELS
    first: str = "hog-window"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "small"
    drawn: str = "figures"
    draws: bool = True
    poses: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method, in the order of the tables."""
        return (*self.plain, *self.networks, *self.learned)

    def layer_of(self, trunk: str) -> str:
        """The layer that is scored by default."""
        if trunk == "alexnet" or self.layer in ("pooled", "embedding"):
            return self.layer
        return "pooled" if self.layer == "pool5" else "embedding"


TRIALS = {  # of the first similarities, for --set
    "hog_size": "side of the images that HOG sees, a multiple of 8; default: 96",
    "window": "x,y: deviations of hog-window, as parts of the image's sides; default: 0.2,0.6",
    "components": "principal directions of HOG that are kept, 0: all; default: 256, paper 0",
}


def expand_set(
    arguments: Sequence[str], presets: Mapping[str, Any] = PRESETS, trials: Mapping[str, str] = TRIALS
) -> list[str]:
    """`--set name=value other=value` as the options they stand for: --name value, --no-name for a bool.

    The fields of the presets are the settings, and those of `trials`.

    Raises:
        ValueError: for what is no name=value, or no setting; `--set help` ends with a list of all.
    """
    settings = fields(presets["small"])
    known = {name.replace("-", "_"): one for one in settings for name in (one.name, flag(one.name)[2:])}
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
                print(_all_settings(presets, trials))
                raise SystemExit(0)
            name, equals, value = setting.partition("=")
            if not equals or name.replace("-", "_") not in (*known, *trials):
                raise ValueError(f"--set {setting}: give name=value; --set help lists the names")
            one = known.get(name.replace("-", "_"))
            option = f"--{name.replace('_', '-')}" if one is None else flag(one.name)
            if one is not None and isinstance(one.default, bool):
                if value not in ("yes", "no"):
                    raise ValueError(f"--set {name} must be yes or no, got {value!r}")
                found.append(option if value == "yes" else f"--no-{option[2:]}")
            else:
                found += [option, *value.split(",")]
    return found


def add_recipe_options(
    parser: argparse.ArgumentParser, names: Mapping[str, Any], presets: Mapping[str, Any], says: str
) -> None:
    """--preset, --set, and an option for each field of the recipes, without a default of its own."""
    add = names["learning"].add_argument
    add("--preset", choices=tuple(presets), help=says)
    add("--set", nargs="+", metavar="NAME=VALUE", help="settings for trials; --set help lists all")
    for one in fields(presets["small"]):
        about = one.metadata
        extra: dict[str, Any] = {"help": argparse.SUPPRESS}
        if about["group"]:
            small, paper = (_shown(one, presets[preset]) for preset in ("small", "paper"))
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


def build_parser(line: CommandLine, description: str) -> argparse.ArgumentParser:
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
    add = parser.add_argument_group("data").add_argument
    line.add_data(add)
    add("--skip-unreadable", action="store_true", help="count unreadable images and leave them out")
    if line.draws:
        add("--figures", choices=tuple(FIGURE_SIZES), help="size of the drawn data; default: full")
    _add_what(parser.add_argument_group("what is compared").add_argument, line)
    add_run_options(parser.add_argument_group("where it runs, and where results go").add_argument)
    _add_start(parser.add_argument_group("what training starts from").add_argument, line)
    network = parser.add_argument_group("network")
    learning = parser.add_argument_group(
        "learning", "each option overrides the preset; in brackets small's value, and the paper's"
    )
    says = f"paper: its values; default: {line.preset}, or {line.drawn} on drawn figures"
    add_recipe_options(parser, {"network": network, "learning": learning}, PRESETS, says)
    return parser


def _add_what(add: Callable[..., Any], line: CommandLine) -> None:
    add("--method", nargs="+", choices=(*line.methods, "all"), metavar="METHOD", help="see below, or all")
    seeds = "a row each; default: 0 1 2 on drawn figures, else 0"
    add("--seed", type=int, nargs="+", metavar="N", help=seeds)
    other = line.layer_of("resnet18")
    default = line.layer if other == line.layer else f"{line.layer}, of other trunks than AlexNet {other}"
    add("--layer", choices=LAYERS, help=f"whose features are scored; default: {default}")
    add("--instance-lda", action="store_true", help="score an InstanceLDA of that layer, learned from views")
    half = "score it together with the first similarities, half and half"
    add("--with-start", action="store_true", help=half)
    add("--no-round-scores", action="store_true", help="score after the last round only, which is quicker")
    add("--checkpoint", type=Path, metavar="FILE", help="checkpoint.pt of a run, for --method checkpoint")
    add("--imagenet-weights", type=Path, metavar="FILE", help="for --method alexnet-imagenet")


def add_run_options(add: Callable[..., Any]) -> None:
    """Those of every benchmark that trains: where it runs, and where results go."""
    add("--output", type=Path, metavar="FOLDER", help="default: a new folder under runs/")
    cache = Path("runs/cache")
    about = f"decoded images and HOG; default: {cache}"
    add("--cache", type=Path, metavar="FOLDER", default=cache, help=about)
    add("--resume", action="store_true", help="go on with the run in --output, or add rows to it")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--workers", type=int, default=min(2, usable_cores()), metavar="N", help="that load images")
    add("--quiet", action="store_true", help="no progress bars")


def _add_start(add: Callable[..., Any], line: CommandLine) -> None:
    says = f"network: Embedder over --trunk, trunk: its output [{line.first}, paper hog-lda]"
    add("--first-similarities", dest="first", choices=FIRST, help=says)
    add("--initial", dest="first", choices=FIRST, help=argparse.SUPPRESS)
    add("--init", type=Path, metavar="FILE", help="ImageNet weights of the trunk, as torchvision has them")
    add("--window", type=float, nargs=2, metavar=("X", "Y"), help=argparse.SUPPRESS)
    add("--hog-size", type=int, default=96, help=argparse.SUPPRESS)
    add("--components", type=int, help=argparse.SUPPRESS)


def _all_settings(presets: Mapping[str, Any], trials: Mapping[str, str]) -> str:
    header = f"{'name':20s} {' '.join(f'{name:>12s}' for name in presets)}  what it does"
    lines = [
        f"{flag(one.name)[2:].replace('-', '_'):20s} "
        f"{' '.join(f'{_shown(one, recipe):>12s}' for recipe in presets.values())}  {one.metadata['says']}"
        for one in fields(presets["small"])
    ]
    more = [f"{name:20s} {'':51s}  {says}" for name, says in trials.items()]
    return "\n".join([header, *lines, *more])


def _shown(one: Field[Any], recipe: Any) -> str:
    value = getattr(recipe, one.name)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return "-" if value in (None, "") else str(value)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Lines of the description as they are; wide enough for one line an option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=118)
