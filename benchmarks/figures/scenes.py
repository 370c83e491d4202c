"""Backgrounds of the embedded figures: stadiums, streets and halls full of edges, drawn from a seed."""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

Color = tuple[int, int, int]
Draw = ImageDraw.ImageDraw
Rng = np.random.Generator


def color(rng: Rng, saturation: tuple[float, float], value: tuple[float, float]) -> Color:
    """A color of any hue, with saturation and brightness drawn from the two ranges (both in [0, 1])."""
    r, g, b = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value))
    return int(255 * r), int(255 * g), int(255 * b)


def shade(base: Color, factor: float) -> Color:
    """A color made darker (factor below 1) or brighter."""
    r, g, b = base
    return min(255, round(r * factor)), min(255, round(g * factor)), min(255, round(b * factor))


def make_scene(
    rng: Rng, width: int, height: int, ground: float, clutter: float, vividness: float
) -> Image.Image:
    """A background of the given size in pixels.

    Args:
        rng: draws everything.
        width, height: in pixels.
        ground: where feet stand, as a share of the height from above.
        clutter: 0 (nearly empty) to about 1.5: how many things stand around, and how much they stand out.
        vividness: 0: shades of gray; 1: as colorful as athletes' clothes may be.
    """
    horizon = int(height * (ground - rng.uniform(0.05, 0.28)))
    image = Image.new("RGB", (width, height))
    sky = color(rng, (0.05, 0.5), (0.5, 1.0)), color(rng, (0.0, 0.4), (0.35, 0.9))
    pixels = _gradient(width, height, *sky)
    floor = _gradient(width, height, color(rng, (0.1, 0.6), (0.3, 0.8)), color(rng, (0.1, 0.6), (0.25, 0.7)))
    pixels[horizon:] = floor[horizon:]
    pixels += _noise(rng, width, height, 3) * rng.uniform(4, 10 + 12 * clutter)
    pixels[horizon:] += _noise(rng, width, height, 1)[horizon:] * rng.uniform(3, 6 + 8 * clutter)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    backdrop = [_crowd, _houses, _bars, _bricks, _trees, _banners]
    chosen = rng.permutation(len(backdrop))[: 1 + int(rng.poisson(1.4 * clutter))]
    for i in chosen:
        backdrop[i](draw, rng, width, horizon, clutter)
    _lines_on_the_floor(draw, rng, width, height, horizon)
    for _ in range(rng.poisson(2.5 * clutter)):
        _pole(draw, rng, width, height, horizon)
    for _ in range(rng.poisson(2.0 * clutter)):
        _bystander(draw, rng, width, height, horizon)
    image = ImageEnhance.Color(image).enhance(min(1.0, vividness * rng.uniform(0.6, 1.4)))
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.0, 1.3))))


def _gradient(width: int, height: int, top: Color, bottom: Color) -> npt.NDArray[np.float32]:
    share = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    rows = np.array(top, dtype=np.float32) * (1 - share) + np.array(bottom, dtype=np.float32) * share
    return np.broadcast_to(rows, (height, width, 3)).copy()


def _noise(rng: Rng, width: int, height: int, octaves: int) -> npt.NDArray[np.float32]:
    """(height, width, 1) noise of about unit size, coarse to fine."""
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(octaves):
        cell = 4 * 3 ** (octaves - 1 - octave)
        small = rng.standard_normal((height // cell + 2, width // cell + 2)).astype(np.float32)
        total += np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))
    return total[:, :, None] / np.float32(octaves)


def _crowd(draw: Draw, rng: Rng, width: int, horizon: int, clutter: float) -> None:
    size = rng.uniform(5, 11)
    rows = int(rng.integers(2, 3 + round(4 * clutter)))
    for row in range(rows):
        y = horizon - (rows - row) * size * 1.5
        for x in np.arange(-size, width + size, size * rng.uniform(1.2, 2.0)):
            at = x + rng.normal(0, size * 0.2)
            shirt = color(rng, (0.1, 0.9), (0.2, 0.95))
            draw.ellipse([at - size * 0.7, y, at + size * 0.7, y + size * 2.6], fill=shirt)
            skin = shade((222, 178, 148), rng.uniform(0.4, 1.05))
            draw.ellipse([at - size * 0.36, y - size * 0.7, at + size * 0.36, y + size * 0.1], fill=skin)


def _houses(draw: Draw, rng: Rng, width: int, horizon: int, clutter: float) -> None:
    x = -rng.uniform(0, 40)
    while x < width:
        wide, high = rng.uniform(30, 90), rng.uniform(0.3, 1.0) * horizon
        wall = color(rng, (0.0, 0.4), (0.3, 0.9))
        draw.rectangle([x, horizon - high, x + wide, horizon], fill=wall, outline=shade(wall, 0.6))
        step, pane = rng.uniform(9, 16), shade(wall, float(rng.choice([0.5, 1.5])))
        for wx in np.arange(x + 4, x + wide - 6, step):
            for wy in np.arange(horizon - high + 5, horizon - 6, step * 1.2):
                draw.rectangle([wx, wy, wx + step * 0.5, wy + step * 0.7], fill=pane)
        x += wide + rng.uniform(-4, 20)


def _bars(draw: Draw, rng: Rng, width: int, horizon: int, clutter: float) -> None:
    """A fence, a grid or wall bars."""
    thick, paint = int(rng.integers(1, 4)), color(rng, (0.0, 0.5), (0.1, 1.0))
    top = rng.uniform(0.0, 0.55) * horizon
    if rng.uniform() < 0.7:
        step = rng.uniform(9, 26)
        for x in np.arange(rng.uniform(0, step), width, step):
            draw.line([x, top, x, horizon], fill=paint, width=thick)
    for y in np.arange(top, horizon + 1, rng.uniform(9, 34)):
        draw.line([0, y, width, y], fill=paint, width=thick)


def _bricks(draw: Draw, rng: Rng, width: int, horizon: int, clutter: float) -> None:
    high, wide = rng.uniform(6, 13), rng.uniform(14, 30)
    base = color(rng, (0.1, 0.6), (0.3, 0.8))
    top = rng.uniform(0.0, 0.5) * horizon
    for row, y in enumerate(np.arange(top, horizon, high)):
        for x in np.arange(-wide * (0.5 if row % 2 else 1.0), width, wide):
            brick = shade(base, rng.uniform(0.85, 1.15))
            draw.rectangle([x, y, x + wide - 1.5, min(y + high - 1.5, horizon)], fill=brick)


def _trees(draw: Draw, rng: Rng, width: int, horizon: int, clutter: float) -> None:
    for _ in range(int(rng.integers(3, 5 + round(6 * clutter)))):
        x, high = rng.uniform(0, width), rng.uniform(0.35, 0.95) * horizon
        thick = rng.uniform(3, 9)
        bark = shade((92, 66, 44), rng.uniform(0.6, 1.2))
        draw.rectangle([x - thick / 2, horizon - high, x + thick / 2, horizon], fill=bark)
        leaf = (int(rng.integers(30, 110)), int(rng.integers(80, 160)), int(rng.integers(20, 80)))
        for _ in range(14):
            cx, cy = x + rng.normal(0, 16), horizon - high + rng.normal(0, 14)
            r = rng.uniform(4, 13)
            draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=shade(leaf, rng.uniform(0.6, 1.3)))


def _banners(draw: Draw, rng: Rng, width: int, horizon: int, clutter: float) -> None:
    high = rng.uniform(18, 44)
    x = -rng.uniform(0, 60)
    while x < width:
        wide = rng.uniform(40, 120)
        board, ink = color(rng, (0.2, 1.0), (0.2, 1.0)), color(rng, (0.0, 1.0), (0.0, 1.0))
        draw.rectangle([x, horizon - high, x + wide, horizon], fill=board)
        at = x + 5
        while at < x + wide - 8:  # something like letters
            w = rng.uniform(3, 9)
            h = high * rng.uniform(0.25, 0.6)
            draw.rectangle([at, horizon - high * 0.2 - h, at + w, horizon - high * 0.2], fill=ink)
            at += w + rng.uniform(2, 5)
        x += wide + 2


def _lines_on_the_floor(draw: Draw, rng: Rng, width: int, height: int, horizon: int) -> None:
    paint = shade(color(rng, (0.0, 0.3), (0.8, 1.0)), rng.uniform(0.7, 1.0))
    meet = rng.uniform(-0.5, 1.5) * width
    for x in np.arange(-1.5 * width, 2.5 * width, rng.uniform(50, 160)) if rng.uniform() < 0.6 else ():
        draw.line([meet, horizon - 40, x, height + 10], fill=paint, width=int(rng.integers(1, 4)))
    for _ in range(int(rng.integers(0, 4))):
        y = rng.uniform(horizon, height)
        draw.line([0, y, width, y + rng.normal(0, 6)], fill=paint, width=int(rng.integers(1, 4)))


def _pole(draw: Draw, rng: Rng, width: int, height: int, horizon: int) -> None:
    x, foot, thick = rng.uniform(0, width), rng.uniform(horizon, height), int(rng.integers(2, 8))
    paint = color(rng, (0.0, 0.6), (0.1, 1.0))
    lean = rng.normal(0, 6)
    draw.line([x, foot, x + lean, foot - rng.uniform(0.3, 1.0) * height], fill=paint, width=thick)
    draw.line([x + thick * 0.3, foot, x + lean, foot - 40], fill=shade(paint, 0.6), width=max(1, thick // 3))


def _bystander(draw: Draw, rng: Rng, width: int, height: int, horizon: int) -> None:
    """Somebody who stands in the background, or a thing of that size."""
    x, foot = rng.uniform(0, width), horizon + rng.uniform(0, 0.25) * (height - horizon)
    high = rng.uniform(26, 62)
    coat, legs = color(rng, (0.1, 0.9), (0.15, 0.95)), color(rng, (0.0, 0.6), (0.1, 0.7))
    if rng.uniform() < 0.35:
        end = x + high * rng.uniform(0.4, 1.2)
        draw.rectangle([x, foot - high * 0.6, end, foot], fill=coat, outline=shade(coat, 0.6))
        return
    w = high * 0.12
    for side in (-1, 1):
        toe = (x + side * w * rng.uniform(0.5, 1.6), foot)
        draw.line([x + side * w * 0.5, foot - high * 0.45, *toe], fill=legs, width=max(2, round(w)))
    draw.ellipse([x - w * 1.3, foot - high * 0.86, x + w * 1.3, foot - high * 0.4], fill=coat)
    for side in (-1, 1):
        hand = (x + side * w * rng.uniform(1.2, 3.2), foot - high * rng.uniform(0.35, 0.75))
        draw.line(
            [x + side * w, foot - high * 0.78, *hand], fill=shade(coat, 0.9), width=max(2, round(w * 0.7))
        )
    skin = shade((222, 178, 148), rng.uniform(0.4, 1.05))
    draw.ellipse([x - w * 0.65, foot - high, x + w * 0.65, foot - high * 0.84], fill=skin)
