"""Draws the pictures of docs/concepts.md: python docs/draw.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from pml_posets import Posets
from pml_posets.plots import save_figure

FOLDER = Path(__file__).parent / "pictures"


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
        axis.annotate(str(place + 1), (0.5 * points[chosen] + 0.5 * end), fontsize=11, fontweight="bold")
    axis.scatter(*points[chosen], s=160, marker="*", color="black", label="one unassigned sample", zorder=3)
    axis.set(xticks=[], yticks=[], title="Surrogate classes, and the poset of one sample")
    axis.legend(loc="lower right", fontsize=8)
    save_figure(figure, FOLDER / "posets.png")


def draw_rounds() -> None:
    """The loop of a round."""
    figure = Figure(figsize=(8, 1.9))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 10), ylim=(0, 2.4))
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
    axis.text(5.6, 0.12, "the next round: features of the trained network", ha="center", fontsize=9)
    axis.text(3.55, 2.12, "y-step", ha="center", fontsize=9, color="#3f51b5")
    axis.text(8.45, 2.12, "theta-step", ha="center", fontsize=9, color="#3f51b5")
    save_figure(figure, FOLDER / "rounds.png")


if __name__ == "__main__":
    draw_posets()
    draw_rounds()
