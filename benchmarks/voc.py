"""Object classes told by the nearest objects, PASCAL VOC 2007 or a folder of images (the paper's Table 5).

python benchmarks/voc.py --data-root FOLDER_OF_VOCdevkit
python benchmarks/voc.py --dataset folder --data-root IMAGES     # a subfolder for each class, or labels.csv
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.core import common, session
from benchmarks.core.options import PLAIN, CommandLine, parser_of, settle
from benchmarks.tasks.objects import SETS, ObjectOptions, data_name, prepare
from benchmarks.tasks.objects_report import ObjectReport

LINE = CommandLine("voc", layer="fc6", plain=("majority", *PLAIN))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parse(__doc__ or "", arguments)
    return session.run(options, data_name(options), prepare, ObjectReport)


def parse(description: str, arguments: Sequence[str] | None) -> ObjectOptions:
    """Read and check the command line.

    Args:
        description: of the benchmark; its first paragraph heads the help.
        arguments: None: those of the process.

    Raises:
        ValueError: for values that do not fit together.
        SystemExit: by argparse, for unknown options and for --help.
    """
    parser = parser_of(LINE, description)
    parser.set_defaults(num_classes=1000, mean_size=8.0)  # of the surrogate classes, as in the paper
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", choices=("voc", "folder"), default="voc")
    data.add_argument("--data-root", type=Path, required=True, help="folder of VOCdevkit/, or of images")
    data.add_argument("--votes", type=int, default=5, help="nearest neighbours that vote")
    data.add_argument("--train-set", default=SETS[0], help="VOC's image set to learn from")
    data.add_argument("--test-set", default=SETS[1], help="VOC's image set to test on")
    data.add_argument("--download", action="store_true", help="fetch VOC into --data-root first")
    data.add_argument("--skip-unreadable", action="store_true", help="count unreadable images and go on")
    got = parser.parse_args(arguments)
    if got.votes < 1:
        raise ValueError(f"--votes must be 1 or more, got {got.votes}")
    if got.dataset == "folder" and (got.download or (got.train_set, got.test_set) != SETS):
        raise ValueError("--download, --train-set and --test-set are for --dataset voc")
    return ObjectOptions(
        **settle(LINE, got, drawn=False),
        dataset=got.dataset,
        data_root=got.data_root,
        num_votes=got.votes,
        train_set=got.train_set,
        test_set=got.test_set,
        download=got.download,
        skip_unreadable=got.skip_unreadable,
    )


if __name__ == "__main__":
    common.run_command(main, "voc.py")
