"""Sheets of thumbnails, drawn by PIL alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ._io import atomic_write
from .data.images import UnreadableImageError, read_image

_BACKGROUND, _INK = "white", "black"
_LINE, _TITLE, _GAP = 14, 24, 4  # heights of a line of text and of the title, space between tiles, pixels

Tile = tuple[Path, str]  # photo and caption, which may have several lines


def row_sheet(title: str, rows: Sequence[tuple[str, Sequence[Tile]]], side: int = 112) -> Image.Image:
    """Rows (heading, tiles) of thumbnails with captions below and a heading above each row."""
    lines = max(caption.count("\n") + 1 for _, tiles in rows for _, caption in tiles)
    photos = [[_thumbnail(path, side) for path, _ in tiles] for _, tiles in rows]
    heights = [max(photo.height for photo in row) for row in photos]
    width, height = side + _GAP, (lines + 1) * _LINE + 4 * _GAP
    columns = max(len(tiles) for _, tiles in rows)
    sheet, pen = _titled(title, columns * width + _GAP, sum(heights) + len(rows) * height)
    top = _TITLE
    for (heading, tiles), row, tallest in zip(rows, photos, heights, strict=True):
        pen.text((_GAP, top), _shortened(heading, sheet.width - 2 * _GAP), fill=_INK)
        bottom = top + _LINE + tallest
        for column, ((_, caption), photo) in enumerate(zip(tiles, row, strict=True)):
            left = _GAP + column * width
            sheet.paste(photo, (left + (side - photo.width) // 2, bottom - photo.height))
            text = "\n".join(_shortened(part, side) for part in caption.split("\n"))
            pen.multiline_text((left, bottom), text, fill=_INK, spacing=2)
        top += tallest + height
    return sheet


def map_sheet(
    title: str, paths: Sequence[Path], positions: NDArray[np.float32], side: int = 56
) -> Image.Image:
    """A map of named thumbnails: each in the free cell of a grid that is nearest to its position (N, 2)."""
    cells = grid_cells(positions)
    columns, rows = (cells.max(0) + 1).tolist()
    width, height = side + _GAP, side + _LINE
    sheet, pen = _titled(title, columns * width + _GAP, rows * height)
    for path, (column, row) in zip(paths, cells.tolist(), strict=True):
        left, top = _GAP + column * width, _TITLE + row * height
        photo = _thumbnail(path, side)
        sheet.paste(photo, (left + (side - photo.width) // 2, top + side - photo.height))
        pen.text((left, top + side), _shortened(path.name, side), fill=_INK)
    return sheet


def _titled(title: str, width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty sheet below a title, at least as wide as the title, and its pen."""
    font = ImageFont.load_default(13)
    wide = max(width, int(font.getlength(title)) + 2 * _GAP)
    sheet = Image.new("RGB", (wide, _TITLE + height), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), title, fill=_INK, font=font)
    return sheet, pen


def grid_cells(positions: NDArray[np.float32], slack: float = 1.6) -> NDArray[np.int64]:
    """Columns and rows (N, 2) of a square grid for points (N, 2), no two in one cell, each near its place.

    There are about `slack` cells for each point.
    """
    low, high = positions.min(0), positions.max(0)
    side = int(np.ceil(np.sqrt(slack * len(positions))))
    scaled = (positions - low) / np.maximum(high - low, 1e-12) * (side - 1)
    free = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).reshape(-1, 2)
    taken = np.zeros(len(free), bool)
    cells = np.zeros((len(positions), 2), np.int64)
    crowded = np.argsort(np.square(scaled - scaled.mean(0)).sum(1), kind="stable")  # from the middle outwards
    for point in crowded:
        distance = np.square(free - scaled[point]).sum(1)
        distance[taken] = np.inf
        chosen = int(distance.argmin())
        taken[chosen], cells[point] = True, free[chosen]
    return cells - cells.min(0)


def save_sheet(sheet: Image.Image, path: Path) -> Path:
    """Write a sheet as PNG, whole or not at all."""
    with atomic_write(path) as file:
        sheet.save(file, format="PNG")
    return path


def _thumbnail(path: Path, side: int) -> Image.Image:
    try:
        return ImageOps.contain(read_image(path), (side, side))
    except UnreadableImageError:
        missing = Image.new("RGB", (side, side), "lightgray")
        ImageDraw.Draw(missing).line((0, 0, side, side), fill="red", width=2)
        return missing


def _shortened(text: str, width: int) -> str:
    """The end of a text that fits into a width, pixels."""
    font = ImageFont.load_default()
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[1:]
    return f"...{text}"
