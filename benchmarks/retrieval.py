"""Classes never seen, found again by the nearest neighbours: CUB-200-2011, Cars-196, SOP, any folder.

python benchmarks/retrieval.py --data-root CUB_200_2011 --method kmeans udml-ss posets stml supervised
python benchmarks/retrieval.py --data-root IMAGES        # a subfolder for each class, or labels.csv
python benchmarks/retrieval.py                           # drawn figures, each athlete a class

The first half of the classes is learned from without labels, the second half tested on. Every method that
learns sees as many images in as many iterations, from one recipe.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.core import common, session
from benchmarks.core.options import (
    COMBINATIONS,
    NETWORKS,
    PLAIN,
    CommandLine,
    add_figures,
    check_figures,
    parser_of,
    settle,
)
from benchmarks.data.zero_shot import KINDS, kind_of
from benchmarks.tasks.retrieval import RetrievalOptions, data_name, prepare
from benchmarks.tasks.retrieval_report import RetrievalReport

LINE = CommandLine(
    "retrieval",
    layer="embedding",
    plain=("pixels", *PLAIN),
    default=("hog", "random", "kmeans", "udml-ss", "posets"),
    networks=(*NETWORKS, "init"),
    learned=(
        "kmeans",
        "udml-ss",
        "tac-ccl",
        "concurl",
        "stml",
        "posets",
        "cliques",
        "ntxent",
        *COMBINATIONS,
        "supervised",
    ),
    initial="hog",  # what shows is not a person in the middle
)
FC_DIM = 512  # of the embedding, as published


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parse(__doc__ or "", arguments)
    return session.run(options, data_name(options), prepare, RetrievalReport)


def parse(description: str, arguments: Sequence[str] | None) -> RetrievalOptions:
    """Read and check the command line.

    Args:
        description: of the benchmark; its first paragraph heads the help.
        arguments: None: those of the process.

    Raises:
        ValueError: for values that do not fit together.
        SystemExit: by argparse, for unknown options and for --help.
    """
    parser = parser_of(LINE, description)
    parser.set_defaults(fc_dim=FC_DIM)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-root", type=Path, help="folder of one of the data sets, or of images; without: drawn"
    )
    data.add_argument("--dataset", choices=KINDS, help="what the folder holds; default: by its files")
    data.add_argument("--no-nmi", action="store_true", help="leave out the clustering of the test images")
    data.add_argument("--skip-unreadable", action="store_true", help="count unreadable images and go on")
    add_figures(data)
    got = parser.parse_args(arguments)
    check_figures(got)
    if got.data_root is None and got.dataset is not None:
        raise ValueError(f"--dataset {got.dataset} needs --data-root, its folder")
    return RetrievalOptions(
        **settle(LINE, got, drawn=got.data_root is None),
        kind=got.dataset or ("folder" if got.data_root is None else kind_of(got.data_root)),
        data_root=got.data_root,
        nmi=not got.no_nmi,
        skip_unreadable=got.skip_unreadable,
        figures=got.figures or "full",
    )


if __name__ == "__main__":
    common.run_command(main, "retrieval.py")
