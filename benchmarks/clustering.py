"""Images clustered without labels: CIFAR-10, CIFAR-100-20, STL-10, ImageNet-10 and -Dogs, any folder.

python benchmarks/clustering.py --dataset cifar10 --data-root FOLDER --download --method concurl udml-ss
python benchmarks/clustering.py --data-root IMAGES       # a subfolder for each class, or labels.csv
python benchmarks/clustering.py                          # drawn figures, each sport a class

All images are learned from, without labels; k-means then makes as many clusters as there are classes.
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
from benchmarks.data.clustering import KINDS, TORCHVISION
from benchmarks.tasks.clustering import ClusteringOptions, data_name, prepare
from benchmarks.tasks.clustering_report import ClusteringReport

LINE = CommandLine(
    "clustering",
    layer="embedding",
    plain=("pixels", *PLAIN),
    default=("pixels", "hog", "random", "concurl", "udml-ss", "ntxent", "posets"),
    networks=(*NETWORKS, "init"),
    learned=(
        "concurl",
        "posets",
        "udml-ss",
        "ntxent",
        "kmeans",
        "tac-ccl",
        "stml",
        *COMBINATIONS,
    ),
    initial="hog",  # what shows is not a person in the middle
)
FC_DIM = 128  # of the embedding, as published


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parse(__doc__ or "", arguments)
    return session.run(options, data_name(options), prepare, ClusteringReport)


def parse(description: str, arguments: Sequence[str] | None) -> ClusteringOptions:
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
    data.add_argument("--data-root", type=Path, help="folder of the data; without: drawn figures")
    data.add_argument("--dataset", choices=KINDS, help="default: folder, or omniglot by its file")
    data.add_argument("--num-starts", type=int, default=20, help="of the k-means that is scored")
    data.add_argument("--download", action="store_true", help="let torchvision fetch the data first")
    data.add_argument("--skip-unreadable", action="store_true", help="count unreadable images and go on")
    add_figures(data)
    got = parser.parse_args(arguments)
    check_figures(got)
    root = got.data_root
    if root is None and got.dataset is not None:
        raise ValueError(f"--dataset {got.dataset} needs --data-root, its folder")
    if got.download and got.dataset not in TORCHVISION:
        raise ValueError(f"--download is for --dataset {', '.join(TORCHVISION)}")
    if got.num_starts < 1:
        raise ValueError(f"--num-starts must be 1 or more, got {got.num_starts}")
    drawings = root is not None and ((root / "omniglot.npz").is_file() or root.suffix == ".npz")
    return ClusteringOptions(
        **settle(LINE, got, drawn=root is None),
        kind=got.dataset or ("omniglot" if drawings else "folder"),
        data_root=root,
        num_starts=got.num_starts,
        download=got.download,
        skip_unreadable=got.skip_unreadable,
        figures=got.figures or "full",
    )


if __name__ == "__main__":
    common.run_command(main, "clustering.py")
