"""What deeppose.py writes at its end: the table beside the paper's, predicted poses, and losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.core.common import write_text
from benchmarks.core.drawn_poses import caption, with_pose
from benchmarks.core.results import Result, table
from benchmarks.data.people import PoseData
from benchmarks.measures.skeletons import MPII_SKELETON
from pml_posets._io import read_npz
from pml_posets.plots import Tile, image_rows, loss_curves, save_figure

# Table 3 of the paper: strict PCP@0.5 on Leeds Sports, 11,000 labels.
LSP = {
    "posets": {"T": 89.7, "UL": 62.1, "LL": 48.2, "UA": 36.0, "LA": 16.0, "H": 54.2, "total": 51.0},
    "Shuffle&Learn": {"T": 90.4, "UL": 62.7, "LL": 45.7, "UA": 33.3, "LA": 11.8, "H": 52.0, "total": 49.3},
    "random": {"T": 87.3, "UL": 52.3, "LL": 35.4, "UA": 25.4, "LA": 7.6, "H": 44.0, "total": 42.0},
    "imagenet": {"T": 92.8, "UL": 68.1, "LL": 53.0, "UA": 39.8, "LA": 17.5, "H": 62.8, "total": 55.7},
}
# Table 4 of the paper: PCKh@0.5 on MPII, 17,928 labels; the columns of _MPII_ROWS and the total.
_MPII_ROWS = (
    *("head_top", "upper_neck", "shoulder", "elbow", "wrist"),
    *("hip", "knee", "ankle", "thorax", "pelvis", "total"),
)
MPII = {
    name: dict(zip(_MPII_ROWS, values, strict=True))
    for name, values in {
        "posets": (83.8, 90.9, 77.5, 60.8, 44.4, 74.6, 65.4, 57.4, 90.5, 81.3, 72.7),
        "Shuffle&Learn": (75.8, 86.3, 75.0, 59.2, 42.2, 73.3, 63.1, 51.7, 87.1, 79.5, 69.3),
        "random": (79.5, 87.1, 71.6, 52.1, 34.6, 64.1, 58.3, 51.2, 85.5, 70.1, 65.4),
        "imagenet": (87.2, 93.2, 85.2, 69.6, 52.0, 81.3, 69.7, 62.0, 93.4, 86.6, 78.0),
    }.items()
}
SIDE = 96  # of the images in the pictures, px


def home_of(init: str, fraction: float, seed: int) -> str:
    """The folder of a run."""
    return f"{init}-labels{fraction:g}-seed{seed}"


def write(folder: Path, results: Sequence[Result], data: PoseData, seed: int) -> str:
    """Write table.md and the pictures of one seed; returns the table.

    Args:
        folder: the output folder, with the homes of the runs.
        results: all rows.
        data: the people.
        seed: whose runs are drawn.
    """
    text = f"{score_table(results, data)}\n\n" + "\n".join(notes(results, data))
    write_text(folder / "table.md", text + "\n")
    runs, curves = {}, {}
    for row in sorted(results, key=lambda row: row.settings["label_fraction"]):
        home = folder / home_of(row.method, row.settings["label_fraction"], row.seed)
        if row.seed != seed:
            continue
        if not (home / "predictions.npz").is_file():
            print(f"not in the pictures: {home} is gone", flush=True)
            continue
        found = read_npz(home / "predictions.npz")
        name = f"from {row.method}\n{row.settings['num_labels']} labels"
        runs[name] = found["joints"]
        curves[name.replace("\n", ", ")] = (found["iterations"], found["losses"])
    if runs:
        save_figure(image_rows(_poses(runs, data), _TITLE), folder / "poses.png")
        title = "Training loss: mean squared distance of joints, in sides of the crop"
        save_figure(loss_curves(curves, title=title), folder / "loss.png")
    return text


def score_table(results: Sequence[Result], data: PoseData) -> str:
    """Each beginning with each budget, mean over its seeds, above the paper's rows; in percent."""
    of_mpii = data.skeleton == MPII_SKELETON
    measure, paper, where = ("pckh", MPII, "MPII") if of_mpii else ("pcp", LSP, "LSP")
    parts = [name for name in paper["posets"] if name != "total"]
    keys = [*(f"{measure}/{part}" for part in parts), f"{measure}_total"]
    rows = []
    for fraction in sorted({row.settings["label_fraction"] for row in results}):
        chosen = [row for row in results if row.settings["label_fraction"] == fraction]
        labels = {row.method: str(row.settings["num_labels"]) for row in chosen}
        for method in labels:
            found = np.array([[row.metrics[key] for key in keys] for row in chosen if row.method == method])
            cells = [f"{mean:.1f}" for mean in found.mean(axis=0)]
            if len(found) > 1:
                cells[-1] += f" ± {found[:, -1].std(ddof=1):.1f}"
            rows.append([method, labels[method], *cells, str(len(found))])
    all_labels = "17928" if of_mpii else "11000"
    for name, values in paper.items():
        rows.append(
            [f"paper ({where}): {name}", all_labels, *(f"{value:.1f}" for value in values.values()), ""]
        )
    return table(["begun from", "labels", *parts, "total", "seeds"], rows)


def notes(results: Sequence[Result], data: PoseData) -> list[str]:
    """What was measured, and how it differs from the paper."""
    last = results[-1]
    unit = "sticks"
    lines = ["Strict PCP@0.5 in percent."]
    if data.skeleton == MPII_SKELETON:
        by = {"neck": "the distance from neck to head top, as in the paper", "box": "MPII's head box"}
        lines = [f"PCKh@0.5 in percent, by {by[last.settings['head_size']]}; total: the mean of the columns."]
        unit = "joints"
    judged, not_judged = (int(last.metrics[name]) for name in ("judged", "not_judged"))
    lines.append(f"Tested on {len(data.test)} people: {judged} {unit} judged, {not_judged} not.")
    names = ("image_size", "batch_norm", "iterations", "batch_size", "optimizer", "lr")
    for method in dict.fromkeys(row.method for row in results):
        used = next(row.settings for row in results if row.method == method)
        lines.append(f"{method}: " + ", ".join(f"{name} {used[name]}" for name in names) + ".")
    lines.append(
        "The paper: AlexNet at 227 px, unsupervised on Olympic Sports frames; the authors' code trains with "
        "Adagrad at 5e-4 and batches of 128, on the joints' box enlarged by 1.5 to 2 (MPII: 1 to 1.2), each "
        "side on its own, stretched to a square. Here: square crops, 1.3 times the box's longer side."
    )
    return lines


_TITLE = (
    "Predicted poses, with their mean error in percent of the crop's side\n"
    "(first row: the truth; red: right limbs, blue: left)"
)


def _poses(runs: dict[str, npt.NDArray[Any]], data: PoseData, num_people: int = 8) -> dict[str, list[Tile]]:
    """Test people, evenly spaced: a row of the truth, a row a run."""
    count = len(data.test)
    chosen = np.unique(np.linspace(0, count - 1, min(num_people, count) + 2).astype(int)[1:-1]).tolist()
    images = {k: data.images[int(data.test[k])].convert("RGB").resize((SIDE, SIDE)) for k in chosen}
    truth = data.joints[data.test]
    names = {k: caption(data.names[int(data.test[k])]) for k in chosen}
    rows = {
        "truth": [Tile(with_pose(images[k], truth[k], data.skeleton), names[k], "tab:red") for k in chosen]
    }
    for name, joints in runs.items():
        errors = 100 * np.nanmean(np.linalg.norm(joints - truth, axis=2), axis=1)
        rows[name] = [
            Tile(with_pose(images[k], joints[k], data.skeleton), f"error {errors[k]:.0f} %") for k in chosen
        ]
    return rows
