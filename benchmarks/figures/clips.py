"""Clips of the embedded figures: one athlete before one scene, frame by frame, with boxes and joints."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from benchmarks.figures.drawing import Look, Painter
from benchmarks.figures.motion import JOINT_NAMES, MIRRORED_JOINTS, SPORTS, Body, Sport, perform, project
from benchmarks.figures.scenes import make_scene, shade

_SUPER = 2  # drawn at twice the size
_FRAME = 1.3  # side of a frame in nominal crops
_GROUND = 0.72


@dataclass(frozen=True)
class FigureSettings:
    """What the embedded data are made from; the same settings give the same files.

    Args:
        seed: of everything.
        sports: names from `motion.SPORTS`.
        num_sources: athletes (each in a scene of their own) per sport.
        num_clips: clips per source.
        num_frames: frames per clip, about one cycle of the motion.
        size: nominal side of a person's box, in pixels.
        num_anchors: anchors in a sport's label file, at most.
        clutter: how much stands behind the athlete; 0: plain backgrounds, 1: ordinary, 2: full.
        vividness: color of the backgrounds; 0: gray, 1: as colorful as the athletes' clothes.
        variety: 0: everybody moves alike and is seen from the same side; 1: in their own way, from anywhere.
        jitter: noise of the boxes: their scale (share) and position (share of the side).
        blur: motion blur as a share of the time between two frames, at most.
        image_format: "jpg" or "png".
    """

    seed: int = 0
    sports: tuple[str, ...] = tuple(SPORTS)
    num_sources: int = 16
    num_clips: int = 2
    num_frames: int = 14
    size: int = 72
    num_anchors: int = 40
    clutter: float = 1.6
    vividness: float = 0.4
    variety: float = 0.8
    jitter: float = 0.08
    blur: float = 0.6
    image_format: str = "jpg"

    def check(self) -> None:
        """Raises ValueError where a setting makes no sense."""
        from pml_posets._validation import as_count, as_real  # workers need no torch

        unknown = [name for name in self.sports if name not in SPORTS]
        if unknown or not self.sports:
            raise ValueError(f"sports must be some of {', '.join(SPORTS)}, got {unknown or 'none'}")
        if len(set(self.sports)) != len(self.sports):
            raise ValueError(f"sports must differ, got {', '.join(self.sports)}")
        least = {"num_sources": 2, "num_clips": 1, "num_frames": 2, "num_anchors": 1, "size": 32, "seed": 0}
        for name, low in least.items():
            as_count(getattr(self, name), name, low)
        for name in ("clutter", "vividness", "variety", "jitter", "blur"):
            as_real(getattr(self, name), name, low=0, high=3)
        if self.image_format not in ("jpg", "png"):
            raise ValueError(f"image_format must be jpg or png, got {self.image_format!r}")

    def jobs(self) -> list[tuple[str, int]]:
        """All (sport, source), sport by sport."""
        return [(sport, source) for sport in self.sports for source in range(self.num_sources)]


@dataclass(frozen=True)
class Clip:
    """One rendered clip: per frame its name, joints in the box, pose and phase."""

    names: list[str]
    joints: npt.NDArray[np.float32]
    poses: npt.NDArray[np.float32]
    phases: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Source:
    """One athlete in one scene, and how the camera stands to them."""

    sport: Sport
    body: Body
    look: Look
    scene: Image.Image
    view: float
    mirrored: bool
    style: int


@dataclass(frozen=True)
class _Shot:
    """Where everything is in the frames of a clip; a frame is painted as the mean of a few moments.

    points: (F, moments, 20, 3) in body heights; camera: (F, 2), what stands in the middle, likewise;
    pan: (F, moments), how far the scene has moved, in pixels; unit: pixels a body height; canvas: its side.
    """

    points: npt.NDArray[np.float64]
    phases: npt.NDArray[np.float64]
    camera: npt.NDArray[np.float64]
    pan: npt.NDArray[np.float64]
    unit: float
    canvas: int

    def pixels(self, points: npt.NDArray[np.float64], frame: int) -> npt.NDArray[np.float64]:
        """Body heights to pixels of the canvas: (J, 3) points of one frame."""
        placed = points * self.unit
        placed[:, :2] += self.canvas / 2 - self.camera[frame] * self.unit
        return placed


def generator(*key: int | str) -> np.random.Generator:
    """Random numbers of their own for every key."""
    words = [int.from_bytes(hashlib.sha256(str(part).encode()).digest()[:4], "little") for part in key]
    return np.random.default_rng(words)


def render_source(root: Path, settings: FigureSettings, name: str, source: int) -> list[Clip]:
    """Write frames and boxes of all clips of one source; what is known of them."""
    rng = generator(settings.seed, name, source)
    sport, body, look = SPORTS[name], Body.vary(rng), Look.draw(rng)
    side = _SUPER * round(_FRAME * settings.size)
    size = round(2.6 * side), round(1.7 * side)
    scene = make_scene(rng, *size, _GROUND, settings.clutter, settings.vividness)
    view = sport.yaw + settings.variety * float(np.clip(rng.normal(0, 20), -40, 40))
    if rng.uniform() < 0.2 * settings.variety:
        view = 180.0 - view  # from the other side
    made = _Source(sport, body, look, scene, view, bool(rng.uniform() < 0.5), int(rng.integers(2**32)))
    clips = []
    for clip in range(settings.num_clips):
        sequence = f"{name}_{source:02d}_{clip:02d}"
        clip_rng = generator(settings.seed, name, source, clip)
        clips.append(_render_clip(root, f"{name}/{sequence}", settings, made, clip_rng))
    return clips


def _render_clip(
    root: Path, sequence: str, settings: FigureSettings, source: _Source, rng: np.random.Generator
) -> Clip:
    """Write one clip, `sequence` being <category>/<sequence>."""
    shot = _shoot(settings, source, rng)
    count, moments = shot.pan.shape
    middle = shot.points[:, moments // 2]
    low, high = middle[:, :, :2].min(axis=1), middle[:, :, :2].max(axis=1)
    extent = ((high - low).max(axis=1) + 0.14) * shot.unit / _SUPER
    gain, noise = rng.uniform(0.8, 1.15), rng.uniform(0.5, 4.5)
    folder = root / "frames" / sequence
    folder.mkdir(parents=True)
    names, joints, boxes = [], [], []
    for frame in range(count):
        pixels = np.zeros((shot.canvas // _SUPER, shot.canvas // _SUPER, 3), dtype=np.float32)
        for moment in range(moments):
            pixels += np.asarray(_paint(source, shot, frame, moment).reduce(_SUPER), dtype=np.float32)
        grain = rng.standard_normal((*pixels.shape[:2], 1)).astype(np.float32)
        image = Image.fromarray((pixels / moments * gain + noise * grain).clip(0, 255).astype(np.uint8))
        name = f"I{frame:05d}.{settings.image_format}"
        image.save(folder / name, "JPEG" if settings.image_format == "jpg" else "PNG", quality=90)
        names.append(f"./{folder.name}/{name}")
        # The box: square, larger than the figure, held steady over the clip, and noisy as a detector's.
        side = (0.6 * extent[frame] + 0.4 * extent.max()) * np.exp(settings.jitter * rng.normal())
        placed = shot.pixels(middle[frame], frame)[:, :2] / _SUPER
        center = (placed.min(axis=0) + placed.max(axis=0)) / 2
        center += settings.jitter * side * np.clip(rng.standard_normal(2), -2, 2)
        corner, side = np.round(center - side / 2), round(float(side))
        joints.append((placed[: len(JOINT_NAMES)] - corner) / side)
        boxes.append(" ".join(f"{v:.0f}" for v in (frame + 1, *(corner + 1), *(corner + side))))
    box_path = root / "bboxes" / f"{sequence}.bb"
    box_path.parent.mkdir(parents=True, exist_ok=True)
    box_path.write_text("\n".join(boxes) + "\n")
    poses = middle[:, : len(JOINT_NAMES), :2]
    poses = poses - (poses[:, 5:6] + poses[:, 6:7]) / 2
    order = MIRRORED_JOINTS if source.mirrored else np.arange(len(JOINT_NAMES))
    # In a mirrored picture the right arm is a left arm.
    return Clip(
        names,
        np.array(joints, dtype=np.float32)[:, order],
        poses.astype(np.float32)[:, order],
        shot.phases[:, moments // 2].astype(np.float32),
    )


def _shoot(settings: FigureSettings, source: _Source, rng: np.random.Generator) -> _Shot:
    """The motion of one clip, seen by its camera."""
    count, moments = settings.num_frames, 3 if settings.blur > 0 else 1
    shutter = rng.uniform(0.1, 1.0) * settings.blur
    time = np.arange(count)[:, None] + (np.arange(moments) - moments // 2) / moments * shutter  # in frames
    phases = (rng.uniform() + time * rng.uniform(0.9, 1.3) / count) % 1.0
    poses = perform(source.sport, phases.ravel(), np.random.default_rng(source.style), settings.variety)
    drift = rng.normal(0, 5) + rng.normal(0, 8) * (time.ravel() / count - 0.5)
    yaw = source.view + settings.variety * drift
    pitch, roll = rng.uniform(-2, 14), rng.normal(0, 2.5) * settings.variety
    points = project(source.body.points(poses), yaw, pitch, roll)
    if source.mirrored:
        points[..., 0] *= -1
    points = points.reshape(count, moments, -1, 3)
    middle = points[:, moments // 2, :, :2]
    low, high = middle.min(axis=1), middle.max(axis=1)  # (F, 2)
    unit = _SUPER * settings.size * rng.uniform(0.86, 1.0) / float((high - low).max() + 0.14)
    canvas = _SUPER * round(_FRAME * settings.size)
    camera = _smooth((low + high) / 2) + 0.02 * _smooth(rng.standard_normal((count, 2)))
    pan = rng.uniform(0, source.scene.width - canvas) + rng.normal(0, canvas / 36) * time
    return _Shot(points, phases, camera, pan, unit, canvas)


def _paint(source: _Source, shot: _Shot, frame: int, moment: int) -> Image.Image:
    """One moment: the scene behind, a shadow, the athlete and what is held."""
    scene, canvas, unit, camera = source.scene, shot.canvas, shot.unit, shot.camera[frame]
    left = int(np.clip(shot.pan[frame, moment] + camera[0] * unit, 0, scene.width - canvas))
    top = int(np.clip(_GROUND * scene.height + camera[1] * unit - canvas / 2, 0, scene.height - canvas))
    image = scene.crop((left, top, left + canvas, top + canvas))
    draw = ImageDraw.Draw(image)
    placed = shot.pixels(shot.points[frame, moment], frame)
    feet = placed[[13, 14, 18, 19]]
    x, y = float(feet[:, 0].mean()), float(canvas / 2 - camera[1] * unit + 0.02 * unit)
    if 0 <= x < canvas and 0 <= y < canvas:
        wide = 0.6 * float(np.ptp(feet[:, 0])) + 0.07 * unit
        under: Any = image.getpixel((int(x), int(y)))
        draw.ellipse((x - wide, y - 0.035 * unit, x + wide, y + 0.035 * unit), fill=shade(under, 0.6))
    painter = Painter(draw, source.look, unit)
    painter.prop(source.sport.prop, placed, shot.phases[frame, moment], behind=True)
    painter.figure(placed)
    painter.prop(source.sport.prop, placed, shot.phases[frame, moment], behind=False)
    return image


def _smooth(track: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(F, 2) moved towards its neighbors in time, ends held."""
    padded = np.concatenate([track[:1].repeat(3, axis=0), track, track[-1:].repeat(3, axis=0)])
    weights = np.array([1, 3, 6, 7, 6, 3, 1]) / 27
    return np.stack([w * padded[i : i + len(track)] for i, w in enumerate(weights)]).sum(axis=0)
