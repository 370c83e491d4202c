"""The command line of deeppose.py, checked before any work is done."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.core.cli import LAYERS, add_recipe_options, add_run_options, expand_set
from benchmarks.regression.recipe import PRESETS, Init

DESCRIPTION = """Supervised pose with few labels and with all, from different first weights (Tables 3 and 4).

Leeds Sports Pose is measured by strict PCP@0.5, MPII by PCKh@0.5. Without data, figures are drawn.
"""
EXAMPLES = """examples:
  python benchmarks/deeppose.py                                                  # figures it draws itself
  python benchmarks/deeppose.py --data-root LSP --extra-root LSPET --init random --init posets CHECKPOINT
  python benchmarks/deeppose.py --mpii-annotations FILE.mat --mpii-images FOLDER --set iterations=5000 lr=5e-4
"""
FORMS = {  # of --init
    "random": "random",
    "pretrained": "pretrained",
    "posets": "posets FILE [NAME]",
    "imagenet": "imagenet FILE",
}
ABOUT = {
    "random": "fresh weights",
    "pretrained": "those that --trunk has",
    "posets": "checkpoint.pt of a benchmark",
    "imagenet": "torchvision's weights of --trunk, labels of ImageNet",
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read and check the command line.

    Args:
        arguments: None: those of the process.

    Returns:
        The options, and `inits`, `recipe`.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    got = _parser().parse_args(expand_set(given, PRESETS, {}))
    _check(got)
    from benchmarks.core import common
    from benchmarks.core.networks import architecture_of
    from benchmarks.core.options import changes, fast_precision, new_folder

    drawn = got.data_root is None and got.mpii_annotations is None
    got.preset = got.preset or ("figures" if drawn else "small")
    got.figures = got.figures or "full"
    got.output = got.output or new_folder(Path("runs"), "deeppose")
    got.device = common.pick_device(got.device)
    recipe = PRESETS[got.preset]
    inits = _inits(got.init or [])
    trained = [init.path for init in inits if init.kind == "posets" and init.path is not None]
    if trained:
        recipe = recipe.shaped_as(architecture_of(trained[0]))
    got.recipe = replace(recipe, **changes(got, recipe))
    if got.recipe.precision == "auto":
        got.recipe = replace(got.recipe, precision=fast_precision(got.device))
    begun = "pretrained" if got.recipe.brings_weights else "random"
    got.inits = inits or _inits([[begun]])
    got.init_layers = got.init_layers or ("fc7" if got.recipe.trunk == "alexnet" else "embedding")
    _check_network(got, bool(trained), begun)
    for init in got.inits:
        if init.path is not None:  # does it fit?
            init.models(got.recipe.architecture, got.init_layers, seed=0, dropout=got.recipe.dropout)
    return got


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
    add("--init-layers", choices=LAYERS, help="last layer taken from FILE; default: fc7, or embedding")
    add(
        "--label-fraction",
        type=float,
        nargs="+",
        default=[0.01, 0.1, 1.0],
        metavar="X",
        help="parts of the people to learn from, nested; default: 0.01 0.1 1",
    )
    add("--seed", type=int, nargs="+", default=[0], metavar="N", help="one row for each; default: 0")
    add_run_options(add)
    network = parser.add_argument_group("network")
    learning = parser.add_argument_group(
        "learning", "in brackets the value of the preset small, and the paper's"
    )
    presets = ", ".join(f"{name} ({one.iterations} steps)" for name, one in PRESETS.items())
    says = f"{presets}; default: small or figures"
    add_recipe_options(parser, {"network": network, "learning": learning}, PRESETS, says)
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


def _check_network(got: argparse.Namespace, trained: bool, begun: str) -> None:
    """See that the first weights go with the trunk."""
    trunk = got.recipe.trunk
    if trunk == "hog" and not trained:
        raise ValueError("--trunk hog is of a checkpoint alone: --init posets FILE")
    if trunk != "alexnet" and got.init_layers in LAYERS[:3]:
        raise ValueError(f"--init-layers {got.init_layers} is AlexNet's: of {trunk} take pooled or embedding")
    for init in got.inits:
        if init.kind in ("random", "pretrained") and init.kind != begun:
            has = "has weights of its own" if begun == "pretrained" else "has no weights of its own"
            raise ValueError(f"--init {init.kind}: --trunk {trunk} {has}, use --init {begun}")


def _inits(given: Sequence[Sequence[str]]) -> tuple[Init, ...]:
    """What the regressors begin from."""
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
