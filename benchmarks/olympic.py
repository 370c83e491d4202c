"""Posture retrieval on Olympic Sports or any tree in its layout: the main benchmark (the paper's Table 1).

python benchmarks/olympic.py                                    # figures it draws itself, in minutes
python benchmarks/olympic.py --data-root TREE --method all      # your frames
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.core import common, session
from benchmarks.core.options import CommandLine, add_figures, check_figures, parser_of, settle
from benchmarks.tasks.postures import OlympicOptions, data_name, prepare
from benchmarks.tasks.postures_report import PostureReport

LINE = CommandLine("olympic", layer="fc7")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parse(__doc__ or "", arguments)
    return session.run(options, data_name(options), prepare, PostureReport)


def parse(description: str, arguments: Sequence[str] | None) -> OlympicOptions:
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
        "--data-root", type=Path, help="a tree in the Olympic Sports layout; without: drawn figures"
    )
    data.add_argument("--categories", nargs="+", help="use these categories only")
    data.add_argument("--skip-unreadable", action="store_true", help="count unreadable images and go on")
    add_figures(data)
    got = parser.parse_args(arguments)
    check_figures(got)
    if got.skip_unreadable and got.data_root is None:
        raise ValueError("--skip-unreadable is for a --data-root: drawn figures can be read")
    return OlympicOptions(
        **settle(LINE, got, drawn=got.data_root is None),
        data_root=got.data_root,
        categories=tuple(got.categories) if got.categories else None,
        skip_unreadable=got.skip_unreadable,
        figures=got.figures or "full",
    )


if __name__ == "__main__":
    common.run_command(main, "olympic.py")
