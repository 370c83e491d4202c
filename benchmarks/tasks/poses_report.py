"""What lsp.py shows at its end: the table beside the paper's, copied poses, and heat maps of joints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from benchmarks.core.common import Result, write_text
from benchmarks.core.report import losses, score_table, seen
from benchmarks.core.session import Outcome
from benchmarks.measures.copied import CopiedPoses
from benchmarks.measures.skeletons import Skeleton
from benchmarks.tasks.poses import Poses
from pml_posets.plots import Tile, image_rows, save_figure
from pml_posets.training.joint import JointTrainer

# Table 2 of the paper: strict PCP@0.5 on Leeds Sports.
PAPER = {
    "oracle": "69.2",
    "alexnet-imagenet": "41.1",
    "cliques": "43.5 (from ImageNet)",
    "triplet": "30.0",
    "posets": "34.3 (from ImageNet: 48.3)",
}
SHOWN = ("random", "hog", "posets", "checkpoint", "oracle")  # in the pictures
SIDE = 96  # of the images in the pictures, px
COLOURS = {"right": (230, 60, 60), "left": (60, 120, 240), "middle": (40, 200, 90)}


class PoseReport:
    """The `Report` of lsp.py; pictures are of the first seed.

    Args:
        poses: the task.
    """

    def __init__(self, poses: Poses) -> None:
        self.poses = poses
        self.copied: dict[str, CopiedPoses] = {}
        self.trainers: dict[str, JointTrainer] = {}

    def add(self, method: str, outcome: Outcome) -> None:
        """Note whose poses a method copied, and its trainer if it learned."""
        if outcome.score.shown is not None:
            self.copied[method] = outcome.score.shown
        if outcome.joint is not None:
            self.trainers[method] = outcome.joint

    def write(self, folder: Path, results: list[Result]) -> str:
        """Write table.md and the pictures; returns the main table."""
        poses, people = self.poses, self.poses.people
        parts = people.skeleton.parts
        measures = {"pcp_total": "PCP total", **{f"pcp/{part}": part for part in parts}}
        text = score_table(results, measures, PAPER, "paper (total, LSP)", poses.digits)
        unjudged = max((r.metrics.get("sticks_left_out", 0.0) for r in results), default=0.0)
        notes = [
            f"Strict PCP@0.5 in percent on {len(people.test)} people ({unjudged:.0f} sticks not judged). "
            f"Gallery: {len(poses.gallery)} people and their mirror images ({poses.incomplete} left out, "
            "joints missing).",
            f"Here: {people.name}, learned from {poses.pool.name}; {seen(poses.options)}",
            "The paper: Leeds Sports, 227 px, pool5, networks trained on Olympic Sports frames. Its triplets "
            "are Shuffle & Learn, its cliques began from ImageNet weights.",
        ]
        text = "\n".join([text, "", *notes])
        write_text(folder / "table.md", text + "\n")
        trained = {name: joint for name, joint in self.trainers.items() if joint.history}
        if trained:
            save_figure(losses(trained), folder / "loss.png")
        shown: list[str] = [name for name in SHOWN if name in self.copied]
        if shown:
            title = "Framed: a person and the true pose. Beside it the nearest, whose poses are copied"
            save_figure(image_rows(self._neighbours(shown), title), folder / "neighbours.png")
            count = min(self.copied[name].joints.shape[1] for name in shown)
            title = f"Where the {count} nearest have their joints (heat), and the true pose"
            save_figure(image_rows(self._heat_maps(shown), title), folder / "heatmaps.png")
        return text

    def _queries(self, count: int) -> list[int]:
        """Test rows, evenly spaced."""
        return np.linspace(0, len(self.poses.people.test) - 1, count + 2).astype(int)[1:-1].tolist()

    def _neighbours(self, methods: list[str], num_queries: int = 4, k: int = 6) -> dict[str, list[Tile]]:
        people, gallery = self.poses.people, self.poses.gallery
        rows: dict[str, list[Tile]] = {}
        for number, query in enumerate(self._queries(num_queries), 1):
            index = int(people.test[query])
            truth = with_pose(self._image(index), people.joints[index], people.skeleton)
            for method in methods:
                found = self.copied[method]
                row = [Tile(truth, "", "tab:red")]
                for place in range(min(k, found.indices.shape[1])):
                    which = int(found.indices[query, place])
                    flip = bool(found.flips[query, place])
                    image = self._image(int(gallery[which % len(gallery)]), flip)
                    pose = found.joints[query, place]
                    row.append(Tile(with_pose(image, pose, people.skeleton), "flip" if flip else ""))
                rows[f"person {number}\n{method}"] = row
        return rows

    def _heat_maps(self, methods: list[str], num_queries: int = 8) -> dict[str, list[Tile]]:
        people = self.poses.people
        rows: dict[str, list[Tile]] = {}
        for method in methods:
            row = []
            for query in self._queries(num_queries):
                index = int(people.test[query])
                image = heated(self._image(index), self.copied[method].joints[query])
                row.append(Tile(with_pose(image, people.joints[index], people.skeleton)))
            rows[method] = row
        return rows

    def _image(self, index: int, flip: bool = False) -> Image.Image:
        image = self.poses.people.images[index].convert("RGB").resize((SIDE, SIDE))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


def with_pose(image: Image.Image, joints: npt.NDArray[Any], skeleton: Skeleton) -> Image.Image:
    """A copy of the image with the sticks drawn on it.

    Args:
        image: any size.
        joints: (J, 2) in [0, 1] of the image; sticks of a NaN joint are left out.
        skeleton: the sticks.
    """
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for stick in skeleton.sticks:
        start, end = (
            joints[skeleton.indices(names)].mean(axis=0) * image.width for names in (stick.start, stick.end)
        )
        if np.isfinite([*start, *end]).all():
            sides = {name.split("_")[0] for name in (*stick.start, *stick.end)}
            side = next(iter(sides)) if sides in ({"left"}, {"right"}) else "middle"
            draw.line([*map(float, (*start, *end))], fill=COLOURS[side], width=max(1, image.width // 48))
    return image


def heated(image: Image.Image, poses: npt.NDArray[Any], sigma: float = 0.03) -> Image.Image:
    """The image in grey under the density of joints.

    Args:
        image: any size.
        poses: (k, J, 2) in [0, 1] of the image.
        sigma: of the Gaussian about each joint, as a share of the image.
    """
    side = image.width
    grid = (np.arange(side) + 0.5) / side
    points = poses.reshape(-1, 2)
    across, down = (np.exp(-((grid - points[:, axis, None]) ** 2) / (2 * sigma**2)) for axis in (0, 1))
    heat = down.T @ across  # (side, side)
    heat = (heat / max(float(heat.max()), 1e-9))[:, :, None]
    grey = np.repeat(np.asarray(image.convert("L"), np.float64)[:, :, None], 3, axis=2)
    warm = np.array([255.0, 200.0, 0.0])
    return Image.fromarray((grey * 0.7 * (1 - heat) + warm * heat).round().clip(0, 255).astype(np.uint8))
