"""Which loss pays at which purity of the groups: true groups, a share of their members exchanged.

python benchmarks/purity.py                     # seven losses, five purities, three seeds
python benchmarks/purity.py --quick             # a minute, to see that it runs

A linear map of windowed HOG, which begins as the identity, learns from groups of drawn athletes. It is scored
on other athletes: posture retrieval, mean AUC. A group holds poses that are alike, each of another athlete;
then a share of all members changes places. True poses serve to form groups and to score, for nothing else.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.core import common

LOSSES = (
    "posets, Z = 1",
    "posets, Z = 2",
    "posets, Z = 5",
    "posets and classes (Eq. 2)",
    "classes alone",
    "triplet",
    "contrastive (NT-Xent)",
)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="purity.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loss", nargs="+", default=None, metavar="NAME", help="default: all seven")
    parser.add_argument("--exchanged", nargs="+", type=float, default=None, metavar="SHARE", help="0 to 1")
    parser.add_argument("--seed", nargs="+", type=int, default=None, metavar="N", help="default: 0 1 2")
    parser.add_argument("--iterations", type=int, default=300, metavar="N", help="of 96 frames; default: 300")
    parser.add_argument("--lr", type=float, default=5e-4, metavar="X", help="of Adam; default: 0.0005")
    parser.add_argument("--cache", default="runs/cache", metavar="FOLDER", help="drawn figures")
    parser.add_argument("--output", default="runs/purity", metavar="FOLDER", help="default: runs/purity")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output")
    parser.add_argument("--quick", action="store_true", help="few athletes, one seed, two shares")
    got = parser.parse_args(arguments)
    got.loss = got.loss or list(LOSSES)
    got.exchanged = got.exchanged or ([0.0, 0.5] if got.quick else [0.0, 0.15, 0.3, 0.5, 0.7])
    got.seed = got.seed or ([0] if got.quick else [0, 1, 2])
    if unknown := [name for name in got.loss if name not in LOSSES]:
        raise ValueError(f"--loss must be of {', '.join(LOSSES)}, got {unknown[0]!r}")
    if bad := [share for share in got.exchanged if not 0 <= share <= 1]:
        raise ValueError(f"--exchanged must be from 0 to 1, got {bad[0]}")
    return got


if __name__ == "__main__":  # --help and wrong arguments are answered before torch is imported
    common.told(parse, "purity.py")

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from pytorch_metric_learning.losses import NTXentLoss, TripletMarginLoss
from pytorch_metric_learning.miners import TripletMarginMiner

from benchmarks.core.results import Result, check_alike, rows_to_add_to, table, write_results
from benchmarks.data.olympic import OlympicFrames, OlympicTree, load_tree
from benchmarks.figures.dataset import make_figures, pose_distances
from benchmarks.measures.postures import retrieval_report
from pml_posets import JointTrainer, NearestMedoidMiner, PosetLoss, PseudoLabelSampler
from pml_posets.features.hog import HogGrid, window_weights
from pml_posets.plots import save_figure
from pml_posets.samplers.pseudo_label import GivenLabels

COVERAGE = 0.3  # share of the frames that are in a group
SIZE = 6  # of a group
ALIKE = 0.1  # a pair is right within this share of the closest pairs
DIM, BATCH = 400, 96
SPREADS = (0.2, 0.6)  # of the window, as parts of the side


class Loss(NamedTuple):
    """What goes into a `JointTrainer`.

    Args:
        metric: PML's "metric_loss".
        miner: PML's "tuple_miner"; None: none.
        classifies: a classification loss of the groups beside it, of the same weight.
        num_nearest: Z.
        weight: of the metric loss; 0: only the classification counts.
    """

    metric: torch.nn.Module
    miner: Any = None
    classifies: bool = False
    num_nearest: int = 2
    weight: float = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    got = parse(arguments)
    logging.getLogger("PML").setLevel(logging.ERROR)  # it notes parts that need not be there
    folder = common.output_folder(got.output)
    path = folder / "results.json"
    results = rows_to_add_to(path, got.resume)
    alike = {"iterations": got.iterations, "lr": got.lr, "quick": got.quick}
    check_alike(results, (), lambda method: alike, path)
    train, test = load(Path(got.cache), 1, got.quick), load(Path(got.cache), 0, got.quick)
    test.match(train)
    for share in got.exchanged:
        for seed in got.seed:
            labels = groups(train, share, seed)
            purity = pair_precision(train, labels)
            settings = {"exchanged": share, **alike}
            for name in got.loss:
                if any((r.method, r.seed, r.settings) == (name, seed, settings) for r in results):
                    continue
                start = time.perf_counter()
                score = learn(loss_of(name), train, test, labels, seed, got)
                metrics = {"auc": score, "purity": purity, "start": test.score()}
                seconds = time.perf_counter() - start
                results.append(Result(name, "drawn figures", metrics, settings, seed, seconds=seconds))
                write_results(path, results)
                print(f"{share:.0%} exchanged, pairs {purity:.2f} right: {name} {score:.3f}", flush=True)
    text = report(results)
    common.write_text(folder / "table.md", text)
    draw(results, folder / "purity.png")
    print(text)
    return 0


class Logits(torch.nn.Linear):
    """Logits of unit vectors, ten times as large as they would be: those of a temperature of 0.1."""

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(B, D) -> (B, C)."""
        return 10 * super().forward(torch.nn.functional.normalize(embeddings))


def loss_of(name: str) -> Loss:
    """The loss of a name. Values are those of the recipes of the other benchmarks."""
    if name == "triplet":
        miner = TripletMarginMiner(margin=0.2, type_of_triplets="semihard")
        return Loss(TripletMarginLoss(margin=0.2), miner)
    if name == "contrastive (NT-Xent)":
        return Loss(NTXentLoss(temperature=0.1))
    nearest = {"posets, Z = 1": 1, "posets, Z = 2": 2}.get(name, 5)
    return Loss(
        PosetLoss(nearest),
        NearestMedoidMiner(nearest, anchors="all"),
        classifies="classes" in name,
        num_nearest=nearest,
        weight=0.0 if name == "classes alone" else 1.0,
    )


class Figures:
    """Drawn athletes: features of the frames and of their mirror images, poses, athletes and labels.

    Args:
        hog: (2, N, D) float32 HOG of the frames and of their mirror images.
        weights: (D,) the window.
        poses: (N, 15, 2), true poses.
    """

    def __init__(self, hog: np.ndarray, weights: np.ndarray, tree: OlympicTree, poses: np.ndarray) -> None:
        self.hog, self.weights, self.tree, self.poses = hog, weights, tree, poses
        self.features = self.mirrored = hog[0]

    def match(self, train: Figures) -> None:
        """Bring both sets to the principal directions of the one that is learned from."""
        mean = train.hog[0].mean(0)
        units = [self._units(one.hog, mean) for one in (train, self)]
        both = np.concatenate(units[0])
        directions = np.linalg.eigh(both.T @ both)[1][:, ::-1][:, :DIM].astype(np.float32)
        for one, rows in zip((train, self), units, strict=True):
            one.features, one.mirrored = (np.ascontiguousarray(side @ directions) for side in rows)

    def _units(self, hog: Any, mean: Any) -> Any:
        rows = (hog - mean) * self.weights
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    def score(self, network: Any = None) -> float:
        """Mean AUC over the sports; None: of the features themselves."""
        pair = self.features, self.mirrored
        if network is not None:
            with torch.no_grad():
                pair = tuple(network(torch.from_numpy(rows)).numpy() for rows in pair)
        return float(retrieval_report(pair[0], self.tree.dataset_labels(), mirrored=pair[1]).auc)


def load(cache: Path, seed: int, quick: bool) -> Figures:
    """Draw athletes and describe them by HOG."""
    size = {"num_sources": 4} if quick else {}
    truth = make_figures(cache / f"figures-{seed}{'-quick' if quick else ''}", seed, **size)
    tree = load_tree(truth.root)
    frames = OlympicFrames(tree)
    grid = HogGrid(48 if quick else 96)
    side = grid.image_size
    images = np.stack([np.asarray(frames[i].convert("RGB").resize((side, side))) for i in range(len(frames))])
    hog = [
        np.concatenate([grid.describe(np.ascontiguousarray(part)) for part in np.array_split(one, 16)])
        for one in (images, images[:, :, ::-1])
    ]
    weights = np.repeat(window_weights(grid.centers, SPREADS), grid.channels)
    return Figures(np.stack(hog).astype(np.float32), weights, tree, truth.poses)


def groups(train: Figures, exchanged: float, seed: int) -> np.ndarray:
    """(N,) labels: random frames with the nearest poses of other athletes, then some exchanged; else -1."""
    rng = np.random.default_rng(seed)
    labels, athletes = np.full(len(train.poses), -1), train.tree.sources
    for frame in rng.permutation(len(labels)):
        if (labels >= 0).sum() >= COVERAGE * len(labels):
            break
        if labels[frame] >= 0:
            continue
        order = np.argsort(pose_distances(train.poses[[frame]], train.poses)[0][0], kind="stable")
        order = np.concatenate([[frame], order[(labels[order] < 0) & (athletes[order] != athletes[frame])]])
        first = np.sort(np.unique(athletes[order], return_index=True)[1])[:SIZE]
        labels[order[first]] = labels.max() + 1
    grouped = np.flatnonzero(labels >= 0)
    moved = rng.choice(grouped, round(exchanged * len(grouped)), replace=False)
    labels[moved] = labels[rng.permutation(moved)]
    return labels


def pair_precision(train: Figures, labels: np.ndarray) -> float:
    """Share of the pairs in groups whose poses are among the closest tenth of all pairs."""
    distance = pose_distances(train.poses, train.poses)[0]
    upper = np.triu(np.ones(distance.shape, bool), 1)
    limit = np.quantile(distance[upper], ALIKE)
    same = upper & (labels[:, None] == labels) & (labels >= 0)
    return float((distance[same] <= limit).mean())


def learn(
    loss: Loss, train: Figures, test: Figures, labels: Any, seed: int, got: argparse.Namespace
) -> float:
    """Train the linear map; the score on other athletes."""

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=got.lr)

    network = torch.nn.Linear(DIM, DIM, bias=False)
    torch.nn.init.eye_(network.weight)
    models: dict[str, Any] = {"trunk": network}
    functions: dict[str, Any] = {"metric_loss": loss.metric}
    if loss.classifies:
        models["classifier"] = lambda classes: Logits(DIM, classes)
        functions["classifier_loss"] = torch.nn.CrossEntropyLoss()
    given: dict[str, Any] = {"grouping": GivenLabels(labels), "sources": train.tree.sources, "seed": seed}
    sampler = PseudoLabelSampler(train.features, BATCH, num_nearest=loss.num_nearest, **given)
    JointTrainer(
        models=models,
        optimizers={f"{name}_optimizer": adam for name in models},
        sampler=sampler,
        loss_funcs=functions,
        loss_weights={"metric_loss": loss.weight, "classifier_loss": 1.0} if loss.classifies else None,
        mining_funcs={} if loss.miner is None else {"tuple_miner": loss.miner},
        dataset=list(torch.from_numpy(train.features)),
        num_rounds=1,
        iterations_per_round=got.iterations,
        seed=seed,
        progress=False,
    ).train()
    return test.score(network)


def report(results: Sequence[Result]) -> str:
    """A row for each loss, a column for each share of exchanged members."""
    frame = as_frame(results)
    purity = frame.groupby("exchanged").purity.mean()
    scores = frame.groupby(["loss", "exchanged"], sort=False).auc.agg(["mean", "std"])
    several = results[0].seed != results[-1].seed
    rows = [["pairs that are right", *(f"{value:.2f}" for value in purity)]]
    rows.append(["`start`: the features themselves", *[f"{frame.start.iloc[0]:.3f}"] * len(purity)])
    for name in frame.loss.unique():
        cells = [scores.loc[(name, share)] for share in purity.index]
        rows.append([name, *(f"{c['mean']:.3f}" + (f" ± {c['std']:.3f}" if several else "") for c in cells)])
    return table(["members exchanged", *(f"{share:.0%}" for share in purity.index)], rows)


def draw(results: Sequence[Result], path: Path) -> None:
    """AUC over purity, a line for each loss, the start as a line."""
    frame = as_frame(results)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, rows in frame.groupby("loss", sort=False):
        mean = rows.groupby("exchanged")[["purity", "auc"]].mean()
        axes.plot(mean.purity, mean.auc, marker="o", label=name)
    axes.axhline(frame.start.iloc[0], color="0.4", linestyle="--", label="start: HOG in a window")
    axes.invert_xaxis()
    axes.set_xlabel("share of pairs in a group that are truly alike")
    axes.set_ylabel("mean AUC on other athletes")
    axes.set_title("AUC after training by each loss, over the purity of the groups")
    axes.legend(fontsize=8)
    save_figure(figure, path)


def as_frame(results: Sequence[Result]) -> Any:
    rows = [{"loss": r.method, "exchanged": r.settings["exchanged"], **r.metrics} for r in results]
    return pd.DataFrame(rows).sort_values("loss", key=lambda names: names.map(LOSSES.index), kind="stable")


if __name__ == "__main__":
    common.run_command(main, "purity.py")
