"""The command line of deeppose.py, checked before any work is done."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from benchmarks.regression.recipe import PRESETS, SHAPE, Init, PoseRecipe

DESCRIPTION = """Supervised pose with few labels and with all, from different first weights (Tables 3 and 4).

Leeds Sports Pose is measured by strict PCP@0.5, MPII by PCKh@0.5. Without data, figures are drawn.
"""
EXAMPLES = """examples:
  python benchmarks/deeppose.py                                                  # figures it draws itself
  python benchmarks/deeppose.py --data-root LSP --extra-root LSPET --init random --init posets CHECKPOINT
  python benchmarks/deeppose.py --mpii-annotations FILE.mat --mpii-images FOLDER --set iterations=5000 lr=5e-4
"""
FORMS = {"random": "random", "posets": "posets FILE [NAME]", "imagenet": "imagenet FILE"}  # of --init
ABOUT = {
    "random": "fresh weights",
    "posets": "checkpoint.pt of a benchmark",
    "imagenet": "torchvision's alexnet .pth, labels of ImageNet",
}
_CHOICES = {
    "optimizer": ("adamw", "adagrad", "sgd"),
    "schedule": ("constant", "cosine"),
    "precision": ("auto", "float32", "bfloat16"),
}
_RECIPE = {one.name: one.default for one in fields(PoseRecipe)}
_SETTINGS: dict[str, Any] = {**SHAPE["small"], **_RECIPE}  # names of --set, with the values of "small"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read and check the command line.

    Args:
        arguments: None: those of the process.

    Returns:
        The options, and `inits`, `shape` (an `AlexNetConfig`), `recipe`.

    Raises:
        ValueError: for values that do not fit together, and files that are not there or do not fit.
        SystemExit: by argparse, for unknown options and for --help.
    """
    got = _parser().parse_args(expand_set(sys.argv[1:] if arguments is None else arguments))
    _check(got)
    from benchmarks.core import common
    from benchmarks.core.networks import config_of
    from benchmarks.core.options import fast_precision, new_folder
    from benchmarks.core.recipes import AlexNetConfig

    drawn = got.data_root is None and got.mpii_annotations is None
    got.preset = got.preset or ("figures" if drawn else "small")
    got.figures = got.figures or "full"
    got.output = got.output or new_folder(Path("runs"), "deeppose")
    got.device = common.pick_device(got.device)
    got.inits = _inits(got.init or [["random"]])
    given = {name: getattr(got, name) for name in _SETTINGS if hasattr(got, name)}
    trained = [config_of(init.path) for init in got.inits if init.kind == "posets" and init.path is not None]
    shape = trained[0] if trained else AlexNetConfig(**SHAPE[got.preset])
    got.shape = replace(shape, **{name: value for name, value in given.items() if name not in _RECIPE})
    chosen = {name: tuple(v) if name == "scale" else v for name, v in given.items() if name in _RECIPE}
    if chosen.get("precision", "auto") == "auto":
        chosen["precision"] = fast_precision(got.device)
    got.recipe = PoseRecipe(**{**PRESETS[got.preset], **chosen})
    for init in got.inits:
        if init.path is not None:  # does it fit?
            init.models(got.shape, got.init_layers, seed=0, dropout=got.recipe.dropout)
    return got


def expand_set(arguments: Sequence[str]) -> list[str]:
    """`--set name=value ...` as the options it stands for: --name value, --no-name for a bool.

    Raises:
        ValueError: for what is no name=value, or no name of a setting.
    """
    words: list[str] = []
    inside = False
    for word in arguments:
        inside = word == "--set" or (inside and not word.startswith("--"))
        if not inside or word == "--set":
            words += [] if inside else [word]
            continue
        name, equals, value = word.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in _SETTINGS:
            raise ValueError(f"--set {word}: give name=value with a name of {', '.join(_SETTINGS)}")
        option = "--" + name.replace("_", "-")
        if not isinstance(_SETTINGS[name], bool):
            words += [option, *value.split(",")]
        elif value in ("yes", "no"):
            words.append(option if value == "yes" else f"--no-{option[2:]}")
        else:
            raise ValueError(f"--set {name} must be yes or no, got {value!r}")
    return words


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("data").add_argument
    add("--data-root", type=Path, metavar="LSP", help="images/ with joints.npz (crops) or joints.mat")
    add("--extra-root", type=Path, metavar="LSPET", help="its extended training set, learned from as well")
    add("--mpii-annotations", type=Path, metavar="FILE", help="MPII instead: mpii_human_pose_v1_u12_1.mat")
    add("--mpii-images", type=Path, metavar="FOLDER", help="with its images")
    add("--mpii-people", choices=("complete", "all"), help="those with all 16 joints (default), or everybody")
    add("--split-seed", type=int, metavar="N", help="of MPII's people to test on; default: 0")
    add(
        "--head-size",
        choices=("neck", "box"),
        help="PCKh by neck to head top (the paper, default), or by the head box (official)",
    )
    add("--skip-unreadable", action="store_true", help="leave unreadable images out, and count them")
    add("--figures", choices=("full", "tiny"), help="size of the drawn data; default: full")
    add = parser.add_argument_group("run").add_argument
    forms = "; ".join(f"{form} ({ABOUT[kind]})" for kind, form in FORMS.items())
    add("--init", nargs="+", action="append", metavar=("KIND", "FILE"), help=f"once for each row: {forms}")
    add("--init-layers", choices=("pool5", "fc6", "fc7"), default="fc7", help="last layer taken from FILE")
    add(
        "--label-fraction",
        type=float,
        nargs="+",
        default=[0.01, 0.1, 1.0],
        metavar="X",
        help="parts of the people to learn from, nested; default: 0.01 0.1 1",
    )
    add("--output", type=Path, metavar="FOLDER", help="default: a new folder under runs/")
    add("--cache", type=Path, metavar="FOLDER", default=Path("runs/cache"), help="of decoded images")
    add("--resume", action="store_true", help="go on with the run in --output")
    add("--seed", type=int, nargs="+", default=[0], metavar="N", help="one row for each; default: 0")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1")
    add("--workers", type=int, metavar="N", default=min(2, os.cpu_count() or 1), help="that load images")
    add("--quiet", action="store_true", help="no progress bars")
    recipe = parser.add_argument_group("recipe")
    presets = ", ".join(f"{name} ({one.get('iterations', 1000)} steps)" for name, one in PRESETS.items())
    recipe.add_argument("--preset", choices=tuple(PRESETS), help=f"{presets}; default: small or figures")
    names = ", ".join(f"{name} {value}" for name, value in _SETTINGS.items())
    recipe.add_argument(
        "--set", metavar="NAME=VALUE", nargs="+", help=f"other than the preset; small: {names}"
    )
    for name, value in _SETTINGS.items():
        extra: dict[str, Any] = {"type": type(value)}
        if isinstance(value, bool):
            extra = {"action": argparse.BooleanOptionalAction}
        elif isinstance(value, tuple):
            extra = {"type": float, "nargs": 2}
        elif name in _CHOICES:
            extra = {"choices": _CHOICES[name]}
        option = "--" + name.replace("_", "-")
        recipe.add_argument(option, dest=name, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **extra)
    return parser


def _check(got: argparse.Namespace) -> None:
    """See that the values fit together."""
    of_mpii, of_root, extra = (
        value is not None for value in (got.mpii_annotations, got.data_root, got.extra_root)
    )
    drawn_size = got.figures is not None
    wrong = {
        "--figures are drawn where there is no --data-root: leave one of them out": of_root and drawn_size,
        "--mpii-annotations and --mpii-images belong together: give both": of_mpii != bool(got.mpii_images),
        "--mpii-annotations stands in place of --data-root and --figures: give one of them": (
            of_mpii and (of_root or drawn_size)
        ),
        "--extra-root is learned from beside --data-root: give that too": extra and not of_root,
        "--skip-unreadable is for a --data-root or MPII: drawn figures can be read": (
            got.skip_unreadable and not of_root and not of_mpii
        ),
        "--resume needs --output, the folder of the run to go on with": got.resume and got.output is None,
        f"--workers must be 0 or more, got {got.workers}": got.workers < 0,
        f"--seed and --split-seed must be 0 or more, got {got.seed} and {got.split_seed}": (
            min(*got.seed, got.split_seed or 0) < 0
        ),
    }
    for name in ("mpii_people", "split_seed", "head_size"):
        wrong[f"--{name.replace('_', '-')} is for --mpii-annotations"] = (
            getattr(got, name) is not None and not of_mpii
        )
    for share in got.label_fraction:
        wrong[f"--label-fraction must lie above 0 and up to 1, got {share:g}"] = not 0 < share <= 1
    for text, holds in wrong.items():
        if holds:
            raise ValueError(text)


def _inits(given: Sequence[Sequence[str]]) -> tuple[Init, ...]:
    """What the regressors begin from.

    Raises:
        ValueError: for an unknown kind, a file that is not there, or a name that is used twice.
    """
    inits: dict[str, Init] = {}
    for kind, *rest in given:
        if kind not in FORMS:
            raise ValueError(f"--init must be one of {', '.join(FORMS)}, got {kind!r}")
        most = len(FORMS[kind].split()) - 1
        if not min(1, most) <= len(rest) <= most:
            raise ValueError(f"--init {' '.join([kind, *rest])}: expected --init {FORMS[kind]}")
        path = Path(rest[0]) if rest else None
        if path is not None and not path.is_file():
            raise ValueError(f"--init {kind}: there is no file {path}")
        name = rest[1] if len(rest) > 1 else kind
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"--init: a name is of letters, digits, _ . and -, got {name!r}")
        if name in inits:
            raise ValueError(
                f"--init: {name} is there twice; give the second a name of its own: posets FILE NAME"
            )
        inits[name] = Init(name, kind, path)  # type: ignore[arg-type]
    return tuple(inits.values())
