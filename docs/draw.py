"""Draws the pictures of the documentation: python docs/draw.py

The learning curves are those of learning_curves.csv: a row more is a point more.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from pml_posets import Posets
from pml_posets.plots import save_figure

FOLDER = Path(__file__).parent / "pictures"
START = 0.649  # mean AUC of HOG in a window on J-HMDB postures
TEACHERS = {
    "start": "AlexNet taught by its start (--teacher start, two rounds)",
    "motion": "AlexNet taught by motion (--teacher motion, one round)",
    "groups": "the same, images not moved (FeatureLoss alone is as good)",
}


def draw_posets() -> None:
    """Groups, medoids and one poset of points in the plane."""
    rng = np.random.default_rng(3)
    centers = rng.uniform(-4, 4, (8, 2))
    grouped = np.concatenate([center + 0.2 * rng.normal(size=(7, 2)) for center in centers])
    points = np.concatenate([grouped, rng.uniform(-5, 5, (45, 2))]).astype(np.float32)
    labels = np.repeat([*range(len(centers)), -1], [7] * len(centers) + [45])
    posets = Posets.build(points, labels, num_nearest=3)
    figure = Figure(figsize=(6, 5), layout="constrained")
    axis = figure.subplots()
    axis.scatter(*points[labels < 0].T, s=16, color="0.75", label="unassigned")
    for label in range(posets.num_classes):
        axis.scatter(*points[labels == label].T, s=26, color=f"C{label % 10}")
    axis.scatter(*points[posets.medoids].T, marker="x", s=70, color="black", label="medoids")
    unassigned = posets.unassigned
    chosen = unassigned[np.abs(points[unassigned]).sum(axis=1).argmin()]
    for place, label in enumerate(posets.nearest_classes[chosen]):
        end = points[posets.medoids[label]]
        axis.annotate("", end, points[chosen], arrowprops={"arrowstyle": "->", "lw": 1.6})
        axis.annotate(
            str(place + 1), (0.5 * points[chosen] + 0.5 * end), fontsize=11, fontweight="bold",
            ha="center", va="center", bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "none"},
        )  # fmt: skip
    axis.scatter(*points[chosen], s=160, marker="*", color="black", label="one unassigned sample", zorder=3)
    axis.set(xticks=[], yticks=[], title="Surrogate classes, and the poset of one sample")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False)
    save_figure(figure, FOLDER / "posets.png")


def draw_rounds() -> None:
    """The loop of a round."""
    figure = Figure(figsize=(8, 1.9))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 9.75), ylim=(0, 2.6))
    axis.axis("off")
    steps = ("images", "features", "neighbors", "groups", "posets", "batches", "network")
    for place, name in enumerate(steps):
        left = 0.15 + 1.4 * place
        axis.add_patch(
            FancyBboxPatch((left, 1.2), 1.05, 0.7, boxstyle="round,pad=0.05", fc="#e8eaf6", ec="#3f51b5")
        )
        axis.text(left + 0.52, 1.55, name, ha="center", va="center", fontsize=10)
        if place:
            axis.annotate("", (left - 0.06, 1.55), (left - 0.29, 1.55), arrowprops={"arrowstyle": "->"})
    axis.annotate(
        "", (2.1, 1.1), (9.1, 1.1), arrowprops={"arrowstyle": "->", "connectionstyle": "bar,fraction=-0.1"}
    )
    axis.text(0.15, 2.22, "One round", fontsize=11)
    axis.text(5.6, 0.12, "the next round: features of the trained network", ha="center", fontsize=9)
    for name, left, right in (("y-step", 2.9, 6.85), ("theta-step", 7.1, 9.65)):
        axis.plot([left, right], [2.12, 2.12], color="#3f51b5", linewidth=1)
        axis.text((left + right) / 2, 2.22, name, ha="center", fontsize=9, color="#3f51b5")
    save_figure(figure, FOLDER / "rounds.png")


def draw_learning_curves() -> None:
    """Mean AUC on J-HMDB postures over iterations, a curve for each teacher, with the start."""
    with open(Path(__file__).parent / "learning_curves.csv", encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["iterations"]))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for number, (teacher, name) in enumerate(TEACHERS.items()):
        points = [row for row in rows if row["teacher"] == teacher]
        iterations = [int(row["iterations"]) for row in points]
        auc, deviation = ([float(row[key] or 0) for row in points] for key in ("auc", "deviation"))
        axis.errorbar(iterations, auc, deviation, marker="o", capsize=3, color=f"C{number}", label=name)
        for row, x, y, spread in zip(points, iterations, auc, deviation, strict=True):
            seeds = "1 seed" if row["seeds"] == "1" else f"{row['seeds']} seeds"
            # The lowest curve has its text below, the highest above, the one between beyond its ends.
            side, beyond = (number - 1, 0) if number != 1 else (0, 1 if x == iterations[-1] else -1)
            axis.annotate(
                f"{y:.3f}\n{seeds}", (x, y + side * spread), (8 * beyond, 7 * side),
                textcoords="offset points", ha=("center", "left", "right")[beyond],
                va=("center", "bottom", "top")[side], fontsize=8, color=f"C{number}",
            )  # fmt: skip
    axis.axhline(START, color="0.4", linestyle="--", label=f"start: HOG in a window, no training ({START})")
    ticks = sorted({int(row["iterations"]) for row in rows})
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.margins(x=0.13, y=0.3)
    axis.set(
        xlabel="iterations of 128 images (log scale)",
        ylabel="mean AUC over 21 actions",
        title="Postures of J-HMDB: AlexNet from scratch at 64 px, no label",
    )
    axis.legend(loc="lower right", fontsize=8)
    save_figure(figure, FOLDER / "learning_curves.png")


if __name__ == "__main__":
    draw_learning_curves()
    draw_posets()
    draw_rounds()
