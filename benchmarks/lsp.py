"""Zero-shot pose: each person takes the pose of the nearest one in feature space (the paper's Table 2).

python benchmarks/lsp.py                                           # figures it draws itself
python benchmarks/lsp.py --data-root LSP --train-root LSPET LSP    # Leeds Sports Pose, more to learn from
python benchmarks/lsp.py --data-root LSP --train-root TREE         # learned on a tree of olympic.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.core import common, session
from benchmarks.core.options import PLAIN, CommandLine, add_figures, check_figures, parser_of, settle
from benchmarks.tasks.poses import PoseOptions, data_name, prepare
from benchmarks.tasks.poses_report import PoseReport

LINE = CommandLine(
    "lsp",
    layer="pool5",
    plain=("oracle", "mean-pose", "pixels", *PLAIN),
    default=("oracle", "mean-pose", "hog", "hog-lda", "start", "random", "posets"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parse(__doc__ or "", arguments)
    return session.run(options, data_name(options), prepare, PoseReport)


def parse(description: str, arguments: Sequence[str] | None) -> PoseOptions:
    """Read and check the command line.

    Args:
        description: of the benchmark; its first paragraph heads the help.
        arguments: None: those of the process.

    Raises:
        ValueError: for values that do not fit together.
        SystemExit: by argparse, for unknown options and for --help.
    """
    parser = parser_of(LINE, description)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-root",
        type=Path,
        help="Leeds Sports Pose: images/ with joints.npz (crops) or joints.mat (the release); without: drawn",
    )
    data.add_argument(
        "--train-root",
        type=Path,
        nargs="+",
        default=[],
        help="learn from these folders: LSPET, LSP (of which the train half), a tree of olympic.py; "
        "default: the train half of --data-root. A network trained before: --method checkpoint",
    )
    data.add_argument("--skip-unreadable", action="store_true", help="count unreadable images and go on")
    add_figures(data)
    got = parser.parse_args(arguments)
    check_figures(got)
    for root in got.train_root:
        if not root.is_dir():
            hint = f": score it by --method checkpoint --checkpoint {root}" if root.is_file() else ""
            raise ValueError(f"--train-root {root} is no folder{hint}")
    if len({root.resolve() for root in got.train_root}) < len(got.train_root):
        raise ValueError("--train-root names a folder twice: its images would count twice")
    return PoseOptions(
        **settle(LINE, got, drawn=got.data_root is None),
        data_root=got.data_root,
        train_roots=tuple(got.train_root),
        skip_unreadable=got.skip_unreadable,
        figures=got.figures or "full",
    )


if __name__ == "__main__":
    common.run_command(main, "lsp.py")
