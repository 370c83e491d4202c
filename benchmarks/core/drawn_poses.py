"""Poses drawn on images: sticks, and heat maps of joints."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from benchmarks.measures.skeletons import Skeleton

COLORS = {"right": (230, 60, 60), "left": (60, 120, 240), "middle": (40, 200, 90)}


def with_pose(image: Image.Image, joints: npt.NDArray[Any], skeleton: Skeleton) -> Image.Image:
    """A copy of the image with the sticks of (J, 2) joints in [0, 1]; those of a NaN joint are left out."""
    image = image.copy()
    pen = ImageDraw.Draw(image)
    for stick in skeleton.sticks:
        start, end = (
            joints[skeleton.indices(names)].mean(axis=0) * image.width for names in (stick.start, stick.end)
        )
        if np.isfinite([*start, *end]).all():
            sides = {name.split("_")[0] for name in (*stick.start, *stick.end)}
            side = next(iter(sides)) if sides in ({"left"}, {"right"}) else "middle"
            pen.line([*map(float, (*start, *end))], fill=COLORS[side], width=max(1, image.width // 48))
    return image


def heated(image: Image.Image, poses: npt.NDArray[Any], sigma: float = 0.03) -> Image.Image:
    """The image in gray under the density of the joints of (k, J, 2) poses in [0, 1], each a Gaussian."""
    side = image.width
    grid = (np.arange(side) + 0.5) / side
    points = poses.reshape(-1, 2)
    across, down = (np.exp(-((grid - points[:, axis, None]) ** 2) / (2 * sigma**2)) for axis in (0, 1))
    heat = down.T @ across  # (side, side)
    heat = (heat / max(float(heat.max()), 1e-9))[:, :, None]
    gray = np.repeat(np.asarray(image.convert("L"), np.float64)[:, :, None], 3, axis=2)
    warm = np.array([255.0, 200.0, 0.0])
    return Image.fromarray((gray * 0.7 * (1 - heat) + warm * heat).round().clip(0, 255).astype(np.uint8))


def caption(name: str) -> str:
    """The name of a file and its folder, in lines short enough to stand under a tile."""
    return "\n".join(part[-17:] for part in name.split("/")[-2:])
