"""HOG-LDA: histograms of oriented gradients, whitened by the statistics of generic image patches.

What is common in any image then counts little, and what is peculiar to one counts much (Hariharan, Malik,
Ramanan: Discriminative Decorrelation for Clustering and Classification, ECCV 2012).
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from .._io import read_npz, write_npz
from ..data.cache import FeatureCache
from ..distributed.process_group import all_gather_objects, all_gather_rows, is_main
from ..distributed.sharing import shard, shares_work, together
from .hog import HogBackend, HogGrid, HogItems, block_toeplitz, hog_batches, stationary_statistics

__all__ = ["HOGLDA", "unit_rows"]

_FORMAT = 1
_LEAST_RIDGE = 1e-6


class HOGLDA:
    """HOG, whitened by the statistics of generic patches: phi = L^-1 (h - mu), with Sigma = L L^T.

    h is the HOG of an image, a grid of blocks with C values each. mu (C,) is the mean of a block and Sigma
    the covariance of the whole grid, both taken from random patches of any images and independent of the
    position in the grid (the covariance of two blocks depends on their offset alone). Sigma is shrunk:
    `ridge` times its mean eigenvalue is added to its diagonal, which is also a floor under its eigenvalues.
    The similarity of two samples is exp(-||phi_a - phi_b||), see `similarity`.

    Args:
        image_size: images are resized to this side (no matter their shape), pixels, a multiple of cell_size.
            Default 96.
        cell_size: side of a cell, pixels. Default 8.
        block_size: side of a block, cells; blocks lie one cell apart. Default 2.
        num_orientations: bins over 180 degrees. Default 9. The defaults give 11 x 11 blocks of 36 values.
        ridge: shrinkage as a multiple of the mean eigenvalue, >= 0, usually 0.01 to 30; towards infinity the
            features become plain HOG minus mu. Default 10: with crops of persons, nearest neighbours by
            posture were best there, and worse than plain HOG's below 1.
        whiten: False leaves L^-1 out: HOG minus mu. Default True.
        window: (x, y), standard deviations of a Gaussian about the image's centre, as parts of its sides: the
            values of each block are multiplied by it. Where every image is a box around an object, what lies
            towards its sides is background. Persons: (0.17, 0.5). None (default): all blocks weigh the same.
        normalize: scale rows to unit length, so that ||a - b||^2 = 2 - 2 cos(a, b). Default True.

    Attributes:
        mean_: (C,) float64, mu. None before `fit_background` or `load`.
        covariance_: (2 G - 1, 2 G - 1, C, C) float64, the covariance of two blocks by their offset; G blocks
            along a side.
        ridge_: the ridge in use; above `ridge` only if the matrix would not have inverted. None before the
            first `transform` that whitens.

    Raises:
        ValueError: if an argument is out of range.

    Source: section 3.1 of the paper; Hariharan et al. 2012, sections 2 and 3.
    Differs from the paper: neither text says how much is shrunk, nor which features (the paper writes HOG-LDA
    only), so cells, normalisation and ridge are ours. Hariharan et al. use a HOG of 31 values and plain
    averages over the pairs of cells at an offset; here the averages fade towards large offsets, so that
    Sigma is positive semi-definite however few patches there are. The window is an addition.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
        >>> hog = HOGLDA(image_size=32).fit_background(images, num_patches=50, progress=False)
        >>> features, mirrored = hog.transform(images, mirror=True, progress=False)
        >>> features.shape, features.dtype, mirrored.shape
        ((8, 324), dtype('float32'), (8, 324))
    """

    def __init__(
        self,
        image_size: int = 96,
        cell_size: int = 8,
        block_size: int = 2,
        num_orientations: int = 9,
        ridge: float = 10.0,
        whiten: bool = True,
        window: tuple[float, float] | None = None,
        normalize: bool = True,
    ) -> None:
        self.grid = HogGrid(image_size, cell_size, block_size, num_orientations)
        if not 0 <= ridge < np.inf:
            raise ValueError(f"ridge must be a finite multiple of the mean eigenvalue from 0, got {ridge}")
        if window is not None and (len(window) != 2 or not min(window) > 0):
            raise ValueError(f"window must be two numbers above 0, (x, y), or None, got {window}")
        self.ridge, self.whiten, self.normalize = float(ridge), bool(whiten), bool(normalize)
        self.window = None if window is None else (float(window[0]), float(window[1]))
        self.mean_: np.ndarray | None = None
        self.covariance_: np.ndarray | None = None
        self.ridge_: float | None = None
        self._factor: tuple[float, torch.Tensor] | None = None  # of which ridge

    @property
    def num_features(self) -> int:
        """D, the length of a row."""
        return self.grid.num_features

    def fit_background(
        self,
        images: Any,
        *,
        num_patches: int = 2500,
        min_scale: float = 0.5,
        num_workers: int = 0,
        progress: bool = True,
        seed: int = 0,
        backend: HogBackend = "torch",
        device: str | torch.device = "cpu",
    ) -> HOGLDA:
        """Estimate mu and Sigma from random square patches, mirrored or not, of any images.

        Args:
            images: as for `transform`; any generic images, the ones to describe among them. No image is drawn
                twice before all were drawn once.
            num_patches: how many, >= 2. Default 2500; a tenth is nearly as good.
            min_scale: sides are drawn between this share of the image's shorter side and all of it, in
                (0, 1]. Default 0.5.
            num_workers: processes that read images; 0 (default): this one.
            progress: show a progress bar. Default True.
            seed: of the patches. Default 0.
            backend: of HOG, see `pml_posets.hog.HogGrid.describe`. Default "torch".
            device: of HOG by torch. Default "cpu".

        Returns:
            self.

        Raises:
            TypeError, ValueError: if images are no images, or an argument is out of range, or the images hold
                no edge at all.
            UnreadableImageError: if a file is missing or truncated; the message names it.
        """
        if num_patches < 2:
            raise ValueError(f"num_patches must be at least 2, got {num_patches}")
        if not 0 < min_scale <= 1:
            raise ValueError(f"min_scale must be in (0, 1], got {min_scale}")
        items = HogItems(images, self.grid.image_size)
        rng = np.random.default_rng(seed)
        num_images = len(items)
        turns = -(-num_patches // num_images)
        which = np.concatenate([rng.permutation(num_images) for _ in range(turns)])[:num_patches]
        scale = rng.uniform(min_scale, 1, num_patches)
        place = rng.random((num_patches, 2))
        flip = rng.integers(0, 2, num_patches)
        items.patches = np.column_stack([which, scale, place, flip])
        rows = np.empty((num_patches, self.num_features), np.float32)
        start = 0
        how: dict[str, Any] = {"backend": backend, "device": device, "num_workers": num_workers}
        what = "background patches"
        for batch in hog_batches(items, self.grid, batch_size=64, progress=progress, what=what, **how):
            rows[start : start + len(batch)] = batch[:, 0]
            start += len(batch)
        mean, covariance = stationary_statistics(rows, self.grid.side)
        if not np.isfinite(covariance).all() or _mean_eigenvalue(covariance) <= 0:
            raise ValueError("the background images hold no edges to learn from: are they blank?")
        self.mean_, self.covariance_, self.ridge_, self._factor = mean, covariance, None, None
        return self

    def transform(
        self,
        images: Any,
        *,
        mirror: bool = False,
        num_workers: int = 0,
        batch_size: int = 256,
        progress: bool = True,
        cache_dir: str | os.PathLike[str] | None = None,
        data_id: str | None = None,
        backend: HogBackend = "torch",
        device: str | torch.device = "cpu",
    ) -> Any:
        """Features of images, in their order.

        Inside `pml_posets.sharing.shared_work` every rank describes its share of the images, and gets the
        rows of all, equal to those of one process; rank 0 alone writes to the cache.

        Args:
            images: a dataset that yields an image or a tuple that starts with one, or a sequence or array of
                images or paths. Images are PIL images, or arrays (H, W[, 3]) or tensors ([3,] H, W), uint8 or
                floating in [0, 1]. Random transforms have no place here.
            mirror: also features of the horizontally mirrored images. Default False.
            num_workers: processes that read and resize images; 0 (default): this one. The values do not
                depend on it.
            batch_size: images a process hands over at once. Default 256.
            progress: show a progress bar. Default True.
            cache_dir: a folder to keep the features in, see `FeatureCache`. None (default): none.
            data_id: for the cache, where it cannot tell by itself when the data change, see
                `FeatureCache.key`.
            backend: of HOG, see `pml_posets.hog.HogGrid.describe`. Default "torch".
            device: of HOG by torch; whitening is done on the CPU. Default "cpu".

        Returns:
            (N, D) float32, or two of them with mirror: of the images and of the mirrored images.

        Raises:
            TypeError, ValueError: if images are no images (the message says which), or before
                `fit_background` or `load`.
            UnreadableImageError: if a file is missing or truncated; the message names it.
            OSError: if the cache folder cannot be written to.
        """
        self._check_fitted()
        names = ["features", "mirrored"] if mirror else ["features"]
        cache = key = None
        if cache_dir is not None:
            cache = FeatureCache(cache_dir)
            key = cache.key(self._arrays(), images, data_id)
            found = cache.load(key)
            complete = found is not None and all(name in found for name in names)
            if shares_work():  # all or none
                complete = all(all_gather_objects(complete))
            if found is not None and complete:
                return found["features"] if not mirror else (found["features"], found["mirrored"])
        items = HogItems(images, self.grid.image_size)
        mine = range(len(items))
        if shares_work():  # whole batches: the same numbers
            batches = shard(-(-len(items) // batch_size))
            mine = mine[batches.start * batch_size : batches.stop * batch_size]
            progress = progress and is_main()
        views = [np.empty((len(mine), self.num_features), np.float32) for _ in names]
        start = 0
        with together() if shares_work() else nullcontext():
            how: dict[str, Any] = {"backend": backend, "device": device, "num_workers": num_workers}
            how |= {"mirror": mirror, "batch_size": batch_size, "progress": progress, "what": "HOG"}
            for batch in hog_batches(items, self.grid, rows=mine, **how):
                rows = self._project(batch.reshape(-1, self.num_features)).reshape(batch.shape)
                bad = np.flatnonzero(~np.isfinite(rows).all((1, 2)))
                if len(bad):
                    which = mine.start + start + bad[0]
                    raise ValueError(f"the features of images[{which}] hold a NaN or an infinite value")
                for v, view in enumerate(views):
                    view[start : start + len(batch)] = rows[:, v]
                start += len(batch)
        if shares_work():
            views = [all_gather_rows(view) for view in views]
        if cache is not None and key is not None and (is_main() or not shares_work()):
            cache.save(key, dict(zip(names, views, strict=True)))
        return (views[0], views[1]) if mirror else views[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write settings and statistics to one .npz file (about 5 MB at the defaults), whole or not at all.

        Raises:
            ValueError: before `fit_background`.
            OSError: if the folder is missing, full or not writable; an older file stays as it was.
        """
        if self.mean_ is None:
            raise ValueError("there is nothing to save: call fit_background(images) first")
        write_npz(path, self._arrays())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HOGLDA:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if it is damaged or holds something else.
        """
        arrays = read_npz(path)
        if int(arrays.pop("hoglda_format", np.array(-1))) != _FORMAT:
            raise ValueError(f"{path} holds no background statistics in the format that this version reads")
        mean, covariance = arrays.pop("mean"), arrays.pop("covariance")
        window = tuple(arrays.pop("window", np.empty(0)).tolist()) or None
        loaded = cls(window=window, **{name: value.item() for name, value in arrays.items()})
        side, channels = 2 * loaded.grid.side - 1, loaded.grid.channels
        if mean.shape != (channels,) or covariance.shape != (side, side, channels, channels):
            raise ValueError(f"{path} is damaged: its statistics do not fit its settings")
        loaded.mean_, loaded.covariance_ = mean, covariance
        return loaded

    def _arrays(self) -> dict[str, np.ndarray]:
        settings = {
            **vars(self.grid),
            "ridge": self.ridge,
            "whiten": self.whiten,
            "window": self.window or (),
            "normalize": self.normalize,
        }
        arrays = {name: np.array(value) for name, value in settings.items()}
        mean, covariance = np.asarray(self.mean_), np.asarray(self.covariance_)
        return {**arrays, "mean": mean, "covariance": covariance, "hoglda_format": np.array(_FORMAT)}

    def finish(self, centred: np.ndarray) -> np.ndarray:
        """Features of HOGs from which mu is taken already: whitened, windowed and scaled as the settings say.

        With it one description serves several settings: transform with whiten=False, normalize=False and no
        window, then change the attributes `whiten`, `ridge`, `window` and `normalize` and finish.

        Args:
            centred: (N, D) float32, h - mu.

        Returns:
            (N, D) float32, a new array.

        Raises:
            ValueError: for another number of columns, or before `fit_background` or `load`.
        """
        self._check_fitted()
        if centred.ndim != 2 or centred.shape[1] != self.num_features:
            raise ValueError(
                f"centred must have shape (N, {self.num_features}), got {centred.shape}: "
                "is it of another image_size?"
            )
        finished = np.empty(centred.shape, np.float32)
        for start in range(0, len(centred), 2048):
            rows = np.require(centred[start : start + 2048], np.float32, "W")  # torch wants it writable
            finished[start : start + 2048] = self._finish(rows)
        return finished

    def _check_fitted(self) -> None:
        if self.mean_ is None:
            raise ValueError(
                "HOGLDA needs background statistics: call fit_background(images) or HOGLDA.load(path)"
            )

    def _project(self, rows: np.ndarray) -> np.ndarray:
        """(B, D) HOGs to (B, D) features."""
        return self._finish(rows - np.tile(np.asarray(self.mean_, np.float32), self.grid.side**2))

    def _finish(self, rows: np.ndarray) -> np.ndarray:
        if self.whiten:
            solved = torch.linalg.solve_triangular(self._whitener(), torch.from_numpy(rows).T, upper=False)
            rows = solved.T.contiguous().numpy()
        if self.window is not None:
            rows = rows * self._window_weights()
        return unit_rows(np.array(rows)) if self.normalize else rows

    def _window_weights(self) -> np.ndarray:
        """(D,) float32, the weight of each value's block."""
        grid, window = self.grid, self.window or (np.inf, np.inf)
        centres = (np.arange(grid.side) + grid.block_size / 2) * grid.cell_size / grid.image_size - 0.5
        across, down = (np.exp(-0.5 * (centres / spread) ** 2) for spread in window)
        return np.repeat(np.outer(down, across).ravel(), grid.channels).astype(np.float32)

    def _whitener(self) -> torch.Tensor:
        """(D, D) float32 lower triangular L."""
        if self._factor is None or self._factor[0] != self.ridge:
            whole = torch.from_numpy(block_toeplitz(np.asarray(self.covariance_)))
            mean_eigenvalue = float(whole.diagonal().mean())
            ridge, added = max(self.ridge, _LEAST_RIDGE), 0.0
            while True:
                whole.diagonal().add_((ridge - added) * mean_eigenvalue)
                factor, failed = torch.linalg.cholesky_ex(whole)
                if not failed:
                    break
                added, ridge = ridge, 2 * ridge
            self.ridge_, self._factor = ridge, (self.ridge, factor.float())
        return self._factor[1]


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length in place; a row of zeros stays."""
    for start in range(0, len(rows), 4096):
        part = rows[start : start + 4096]
        part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
    return rows


def _mean_eigenvalue(covariance: np.ndarray) -> float:
    """Of the whole grid's covariance: its diagonal is that of offset zero, again and again."""
    middle = len(covariance) // 2
    return float(np.trace(covariance[middle, middle])) / covariance.shape[2]
