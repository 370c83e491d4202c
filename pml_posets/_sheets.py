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
_CAPTION, _GAP = 14, 4  # pixels

Tile = tuple[Path, str]  # photo and caption


def row_sheet(rows: Sequence[tuple[str, Sequence[Tile]]], side: int = 96) -> Image.Image:
    """Rows (heading, tiles) of thumbnails with captions below and a heading above each row."""
    width = max(len(tiles) for _, tiles in rows) * (side + _GAP) + _GAP
    height = side + _CAPTION + _GAP
    sheet = Image.new("RGB", (width, len(rows) * (height + _CAPTION) + _GAP), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for line, (heading, tiles) in enumerate(rows):
        top = line * (height + _CAPTION) + _GAP
        pen.text((_GAP, top), _shortened(heading, width - 2 * _GAP), fill=_INK)
        for column, (path, caption) in enumerate(tiles):
            left = _GAP + column * (side + _GAP)
            sheet.paste(_thumbnail(path, side), (left, top + _CAPTION))
            pen.text((left, top + _CAPTION + side), _shortened(caption, side), fill=_INK)
    return sheet


def map_sheet(paths: Sequence[Path], positions: NDArray[np.float32], side: int = 40) -> Image.Image:
    """A map of thumbnails: each is in the free cell of a grid that is nearest to its position (N, 2)."""
    cells = grid_cells(positions)
    columns, rows = cells.max(0) + 1
    sheet = Image.new("RGB", (int(columns) * side, int(rows) * side), _BACKGROUND)
    for path, (column, row) in zip(paths, cells.tolist(), strict=True):
        sheet.paste(_thumbnail(path, side - 2), (column * side + 1, row * side + 1))
    return sheet


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
        return ImageOps.pad(read_image(path), (side, side), color=_BACKGROUND)
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
