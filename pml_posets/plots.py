"""Pictures of rounds, posets, neighbors and ROC curves; an ImportError without matplotlib (extra `plots`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._io import atomic_write
from .data.images import to_numpy, upright

__all__ = ["Tile", "image_rows", "loss_curves", "roc_curves", "save_figure"]


@dataclass(frozen=True)
class Tile:
    """One image of a row.

    Args:
        image: a PIL image, an array (H, W), (H, W, 1) or (H, W, 3), or a tensor (H, W), (1, H, W) or
            (3, H, W). Arrays and tensors are uint8 in 0..255, or floating point and clipped to [0, 1].
        caption: short text under it, in one line or several. Default none.
        frame: color of its frame, any of matplotlib's; None (default): no frame.
    """

    image: Any
    caption: str = ""
    frame: str | None = None


def image_rows(rows: Mapping[str, Sequence[Tile]], title: str = "") -> Any:
    """Rows of images, each with a name at its left: a query and its neighbors, a poset in order.

    Args:
        rows: name of each row to its images, left to right; rows may differ in length.
        title: above the picture.

    Returns:
        A matplotlib Figure, such as the paper's Fig. 5.

    Raises:
        ValueError: without any image, or for one of another shape.
        TypeError: for an array or tensor of another dtype.

    Example:
        >>> grey = np.full((8, 8), 0.5)
        >>> figure = image_rows({"query": [Tile(grey, frame="C0")], "found": [Tile(grey, "0.1")] * 2})
        >>> len(figure.axes[0].get_images())
        3
    """
    width = max((len(row) for row in rows.values()), default=0)
    if width == 0:
        raise ValueError("there are no images to draw: every row is empty")
    lines = max(tile.caption.count("\n") for row in rows.values() for tile in row)
    figure = _figure(0.9 * width + 1.6, (1.12 + 0.12 * lines) * len(rows) + (0.5 if title else 0.1))
    from matplotlib.patches import Rectangle

    # All in one axis, for an axis takes longer to lay out than its image to draw; a tile is one unit wide.
    axis, step, high = figure.subplots(), 1.08, 1.2 + 0.15 * lines
    for number, row in enumerate(rows.values()):
        for place, tile in enumerate(row):
            pixels = _pixels(tile.image)
            sides = np.array(pixels.shape[1::-1]) / max(pixels.shape[:2])
            left, top = (place * step, number * high) + (1 - sides) / 2
            right, bottom = left + sides[0], top + sides[1]
            axis.imshow(pixels, extent=(left, right, bottom, top))
            if tile.frame is not None:
                frame = Rectangle((left, top), *sides, fill=False, edgecolor=tile.frame, linewidth=3)
                axis.add_patch(frame)
            if tile.caption:
                axis.text(place * step + 0.5, bottom + 0.04, tile.caption, ha="center", va="top", fontsize=7)
    axis.set(xlim=(-0.04, width * step), ylim=(len(rows) * high, -0.04), xticks=[])
    axis.set_yticks(np.arange(len(rows)) * high + 0.5, rows, fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_anchor("NW")  # else the names of the rows may leave the picture
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def loss_curves(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    round_starts: Sequence[int] = (),
    title: str = "Loss over the rounds",
) -> Any:
    """The loss at every iteration, smoothed, with the starts of the rounds marked.

    Args:
        curves: name to (iterations, losses), each (T,); a run without any is left out.
        round_starts: iterations at which a round begins.
        title: above the picture.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError: if iterations and losses are not one-dimensional and of one length.

    Source: the paper's Fig. 4 (joint optimization against fixed groups).
    Differs from the paper: the mean over a window of a fiftieth of the run is drawn, the losses behind it.

    Example:
        >>> curves = {"joint": (np.arange(200), np.linspace(2, 1, 200))}
        >>> len(loss_curves(curves, round_starts=[0, 100]).axes)
        1
    """
    figure = _figure(7, 4)
    axis = figure.subplots()
    for number, (name, (iterations, losses)) in enumerate(curves.items()):
        steps, values = np.asarray(iterations), np.asarray(losses, dtype=np.float64)
        if values.ndim != 1 or steps.shape != values.shape:
            raise ValueError(
                f"iterations and losses of {name} must have one shape (T,), got {steps.shape}, {values.shape}"
            )
        if not values.size:
            continue
        window = max(1, values.size // 50)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        middle = window // 2
        axis.plot(steps, values, color=f"C{number}", alpha=0.15, linewidth=0.8)
        axis.plot(steps[middle : middle + smooth.size], smooth, color=f"C{number}", label=name)
    for place, start in enumerate(round_starts):
        axis.axvline(start, color="0.6", linewidth=0.8, linestyle=":")
        axis.annotate(
            f"round {place + 1}", (start, 1), xycoords=("data", "axes fraction"), xytext=(3, -10),
            textcoords="offset points", fontsize=7, color="0.4",
        )  # fmt: skip
    axis.set(xlabel="iteration", ylabel="loss", title=title)
    axis.xaxis.get_major_locator().set_params(integer=True)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)
    return figure


def roc_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str = "Retrieval") -> Any:
    """ROC curves with their areas.

    Args:
        curves: name to (false positive rates, true positive rates), each (T,) in [0, 1], rates rising. The
            largest area comes first.
        title: above the picture.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError: if the rates of a curve differ in shape.

    Example:
        >>> figure = roc_curves({"posets": (np.array([0, 1]), np.array([0.5, 1]))})
        >>> figure.axes[0].get_legend().get_texts()[0].get_text()
        'posets  0.750'
    """
    for name, rates in curves.items():
        shapes = [np.shape(rate) for rate in rates]
        if len(shapes) != 2 or shapes[0] != shapes[1] or len(shapes[0]) != 1:
            raise ValueError(f"the two rates of {name} must have one shape (T,), got {shapes}")
    figure = _figure(5, 5)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.7", linestyle=":", linewidth=1)
    order = sorted(curves.items(), key=lambda item: -np.trapezoid(item[1][1], item[1][0]))
    for name, (fpr, tpr) in order:
        axis.plot(fpr, tpr, label=f"{name}  {np.trapezoid(tpr, fpr):.3f}")
    axis.set(xlabel="false positive rate", ylabel="true positive rate", title=title, aspect="equal")
    if curves:
        axis.legend(frameon=False, fontsize=8, loc="lower right", title="AUC")
    return figure


def save_figure(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG, whole or not at all.

    Args:
        figure: of one of the functions here.
        path: where to, ending in .png, in a folder that exists.

    Returns:
        The path.

    Raises:
        ValueError: for another ending.
        OSError: if it cannot be written; an older file stays as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(loss_curves({"joint": ([0, 1], [2.0, 1.0])}), f"{folder}/loss.png").name
        'loss.png'
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"pictures are written as PNG, got {path}: let the name end in .png")
    with atomic_write(path) as file:
        figure.savefig(file, dpi=130, format="png")
    return path


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('plots need matplotlib: pip install "pml-posets[plots]"') from None
    return Figure(figsize=(width, height), layout="constrained")


def _pixels(image: Any) -> np.ndarray:
    """The image as (H, W, 3) uint8."""
    if hasattr(image, "detach"):
        pixels = to_numpy(image)
        pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
    else:
        pixels = np.asarray(upright(image))
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(
            f"an image must be a PIL image, an array (H, W, 3) or a tensor (3, H, W), got {np.shape(image)}"
        )
    if pixels.dtype.kind == "f":
        if pixels.max() > 10:  # no overshoot, and no normalization
            raise ValueError(
                f"an image must be uint8 or in [0, 1], got {pixels.max():g}: divide bytes by 255"
            )
        pixels = np.nan_to_num(pixels).clip(0, 1) * 255 + 0.5
    elif pixels.dtype != np.uint8:
        raise TypeError(f"an image must be uint8 or floating point in [0, 1], got {pixels.dtype}")
    return np.broadcast_to(pixels.astype(np.uint8), (*pixels.shape[:2], 3))
