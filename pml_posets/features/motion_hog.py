"""HOG of frames that have neighbors in time: what moves counts more, and what moves is described itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator

from .._clips import Clips, as_times
from .._validation import as_codes, as_count, as_real, unit_rows
from .hog import HogGrid, HogItems, check_window, window_weights
from .reduction import principal_components

__all__ = ["MotionHOG", "background_motion"]

_FLOOR = 2.0  # gray values by which a still image may seem to move
_SIGMA = 4.0 / 96  # of the blur of what moves, as part of the image's side


@dataclass(eq=False, repr=False)
class MotionHOG(BaseEstimator):
    r"""Describe each frame of a video by HOG, by the motion about it, and by its neighbors in time.

    A network that sees single frames and is trained on these features (by `FeatureLoss`, or on groups made of
    them) learns what moves from how it looks, which HOG of single frames does not know.

    1. Motion: the affine motion of the background from each frame to the one before and the one after it in
       its clip is estimated (`background_motion`) and undone. The lesser of both absolute differences of gray
       values is what moved there and then, m(x).
    2. Parts, each a unit row in a Gaussian window about the middle: HOG whose blocks are weighted by
       (m / mean m)^`emphasis`, m blurred; HOG of the image m; log m on the grid of cells.
    3. They are put side by side, so that their similarities add up with the weights `parts`; then frames up
       to `steps` before and after, with weights that fall linearly, so that the similarity of two frames is
       the mean along both clips.
    4. The first `components` principal directions are kept.

    Args:
        image_size: side of the square images HOG sees, pixels, a multiple of 8. Default 96.
        window: standard deviations of the window, across and down, as parts of the side. Default (0.2, 0.6).
        parts: weights of the three parts, from 0, not all 0. Default (0.7, 0.2, 0.1).
        emphasis: exponent of the motion, from 0 (none). Default 0.5.
        steps: frames to either side, from 0. Default 1.
        components: columns that are kept at most, from 1. Default 400.
        max_step: as in `ConfidentGrouping`. Default None.

    Raises:
        TypeError, ValueError: by `fit_transform`, for an invalid option, image, time or source.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
        >>> features, mirrored = MotionHOG(32).fit_transform(images, [0] * 8, range(8))
        >>> features.shape, mirrored.shape
        ((8, 8), (8, 8))
    """

    image_size: int = 96
    window: tuple[float, float] = (0.2, 0.6)
    parts: tuple[float, float, float] = (0.7, 0.2, 0.1)
    emphasis: float = 0.5
    steps: int = 1
    components: int = 400
    max_step: float | None = None

    def fit_transform(self, images: Any, sources: Any, times: Any) -> tuple[np.ndarray, np.ndarray]:
        """The features of all frames.

        Args:
            images: N images, as `HOGLDA.transform` takes them; each is read up to four times.
            sources: (N,) ints or strings, the video of each frame.
            times: (N,) numbers, when each was seen within its source; a longer gap ends a clip.

        Returns:
            Features and those of the mirrored frames, (N, K) float32 each, unit rows.
        """
        weights = self._weights()
        grid = HogGrid(self.image_size)
        items = HogItems(images, self.image_size)
        num = len(items)
        clips = Clips(as_codes(sources, num), as_times(times, num), self.max_step)
        described = self._described(items, clips, grid)
        columns: list[list[np.ndarray]] = [[], []]
        for weight, (plain, mirrored) in zip(weights, described, strict=True):
            if weight:
                kept = principal_components(unit_rows(plain), self.components, unit_rows(mirrored))
                for found, rows in zip(columns, kept, strict=True):
                    found.append(np.sqrt(weight) * rows)
        index = np.arange(num)
        steps = range(-self.steps, self.steps + 1)
        both = []
        for parts in columns:
            rows = np.concatenate(parts, axis=1)
            near = [np.sqrt(1 - abs(d) / (self.steps + 1)) * rows[clips.shift(index, d)] for d in steps]
            both.append(np.concatenate(near, axis=1))
        features, mirrored = principal_components(both[0], self.components, both[1])
        return features, mirrored

    def _weights(self) -> list[float]:
        """Of the parts, once all options are checked."""
        as_count(self.steps, "steps", least=0)
        as_real(self.emphasis, "emphasis", low=0)
        as_count(self.components, "components")
        check_window(self.window)
        if self.max_step is not None:
            as_real(self.max_step, "max_step", low=0, open_low=True)
        weights = [as_real(part, "a weight of parts", low=0) for part in np.ravel(self.parts)]
        if len(weights) != 3 or not any(weights):
            raise ValueError(f"parts must be three weights, not all of them 0, got {self.parts}")
        return weights

    def _described(self, items: HogItems, clips: Clips, grid: HogGrid) -> list[tuple[np.ndarray, np.ndarray]]:
        """The three parts of all frames and of their mirror images, in the window, the mean subtracted."""
        num, cells = len(items), grid.image_size // grid.cell_size
        wide = np.empty((2, 2, num, grid.num_features), np.float16)  # (HOG or HOG of motion, mirrored, N, D)
        moving = np.empty((num, grid.side, grid.side), np.float32)
        shape = np.empty((num, cells, cells), np.float32)
        middles = (np.arange(cells) + 0.5) / cells
        for index, frames, motion in self._motion(items, clips):
            for kind, pixels in enumerate((frames, motion[..., None])):
                wide[kind, 0, index] = grid.describe(np.ascontiguousarray(pixels))
                wide[kind, 1, index] = grid.describe(np.ascontiguousarray(pixels[:, :, ::-1]))
            blurred = blur(torch.from_numpy(motion).float(), _SIGMA * grid.image_size).numpy()
            moving[index] = at_places(blurred, grid.centers) + _FLOOR
            shape[index] = np.log(at_places(blurred, middles) + 2 * _FLOOR)
        moving = (moving / moving.mean(axis=(1, 2), keepdims=True)) ** self.emphasis
        shape -= shape.mean(axis=(1, 2), keepdims=True)
        block, cell = (window_weights(centers, self.window) for centers in (grid.centers, middles))
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for kind in (0, 1):
            mean = wide[kind, 0].mean(axis=0, dtype=np.float32)
            views = []
            for turned in (0, 1):
                rows = (wide[kind, turned] - mean).reshape(num, grid.side, grid.side, -1)
                rows *= block[:, :, None]
                if kind == 0:
                    rows *= (moving[:, :, ::-1] if turned else moving)[..., None]
                views.append(rows.reshape(num, -1))
            found.append((views[0], views[1]))
        mean = shape.mean(axis=0)
        turned_shape = shape[:, :, ::-1] - mean
        found.append((((shape - mean) * cell).reshape(num, -1), (turned_shape * cell).reshape(num, -1)))
        return found

    def _motion(self, items: HogItems, clips: Clips) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Dataset indices, frames (B, S, S, 3) uint8 and what moved in them (B, S, S) uint8, in turns."""
        for start in range(0, len(items), 256):
            index = clips.order[start : start + 256]
            frames = np.stack([items[int(i)] for i in index])
            gray = torch.from_numpy(frames).float().mean(dim=3)
            position = np.full(len(items), -1)
            position[index] = np.arange(len(index))
            gaps = []
            for step in (1, -1):
                there, other = clips.has(index, step), gray.clone()
                near = clips.shift(index, step)
                for row in np.flatnonzero(there):
                    if position[near[row]] >= 0:
                        other[row] = gray[position[near[row]]]
                    else:
                        other[row] = torch.from_numpy(items[int(near[row])].copy()).float().mean(dim=2)
                gap = (warped(other, background_motion(gray, other)) - gray).abs()
                gap[~torch.from_numpy(there)] = torch.inf
                gaps.append(gap)
            lesser = torch.minimum(*gaps)
            lesser[lesser.isinf()] = 0  # a clip of one frame
            yield index, frames, (2 * lesser).clamp(max=255).byte().numpy()


def background_motion(
    first: torch.Tensor, second: torch.Tensor, levels: tuple[tuple[int, int], ...] = ((24, 8), (48, 6))
) -> torch.Tensor:
    """The affine motion of the background of images to others, whoever moves in the middle.

    Gauss-Newton steps on the difference of gray values; large ones and the middle of the image count less.

    Args:
        first, second: (B, S, S) float32 gray values, 0 to 255.
        levels: sides that the images are brought down to, in turn, and steps at each.

    Returns:
        (B, 2, 3) float32, as `torch.nn.functional.affine_grid` takes it: second, warped by it, lies on first.
    """
    motion = torch.eye(2, 3).repeat(len(first), 1, 1)
    for side, steps in levels:
        still, moved = (
            blur(F.interpolate(x[:, None], size=(side, side), mode="area")[:, 0], 1.0)
            for x in (first, second)
        )
        line = (torch.arange(side) + 0.5) / side * 2 - 1
        y, x = torch.meshgrid(line, line, indexing="ij")
        places = torch.stack([x, y, torch.ones_like(x)], -1).view(-1, 3)  # (P, 3)
        border = (1 - 0.85 * torch.exp(-0.5 * ((x / 0.45) ** 2 + (y / 0.8) ** 2))).view(-1)
        for _ in range(steps):
            grid = (places @ motion.transpose(1, 2)).view(-1, side, side, 2)
            now = F.grid_sample(moved[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
            inside = (grid.abs().amax(-1) < 1).float().flatten(1)
            gap = (still - now).flatten(1)
            spread = 2.5 * (gap.abs() * inside).median(1, keepdim=True).values.clamp_min(2)
            weight = inside * border / (1 + (gap / spread) ** 2) ** 2
            down, across = torch.gradient(now, dim=(1, 2))
            slopes = torch.cat(
                [slope.flatten(1)[..., None] * places * (side / 2) for slope in (across, down)], -1
            )  # (B, P, 6)
            weighted = slopes * weight[..., None]
            curvature = weighted.transpose(1, 2) @ slopes
            curvature += torch.diag_embed(1e-3 * curvature.diagonal(dim1=1, dim2=2) + 1e2)
            change = torch.linalg.solve(curvature, (weighted * gap[..., None]).sum(1))
            motion = motion + change.view(-1, 2, 3).clamp(-0.1, 0.1)
    return motion


def warped(images: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
    """(B, S, S) images, moved by (B, 2, 3); the border repeats."""
    grid = F.affine_grid(motion, [len(images), 1, *images.shape[1:]], align_corners=False)
    return F.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0]


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """(B, H, W) images under a Gaussian; the border repeats."""
    reach = int(3 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    rows = F.pad(images[:, None], (reach, reach, 0, 0), mode="replicate")
    rows = F.conv2d(rows, kernel.view(1, 1, 1, -1))
    return F.conv2d(F.pad(rows, (0, 0, reach, reach), mode="replicate"), kernel.view(1, 1, -1, 1))[:, 0]


def at_places(images: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(B, S, S) at (G,) rows and columns, parts of the side: (B, G, G)."""
    index = np.minimum((places * images.shape[1] + 1e-6).astype(int), images.shape[1] - 1)
    return images[:, index][:, :, index]
