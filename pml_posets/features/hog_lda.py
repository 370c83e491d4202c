"""HOG-LDA: histograms of oriented gradients, whitened by the statistics of generic image patches.

What is common in any image then counts little, and what is peculiar to one counts much (Hariharan, Malik,
Ramanan: Discriminative Decorrelation for Clustering and Classification, ECCV 2012).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import numpy as np
import torch
from sklearn.exceptions import NotFittedError

from .._validation import as_count, as_features, as_real, unit_rows
from ..data.cache import CacheKey, FeatureCache
from ..distributed.process_group import all_gather_objects
from ..distributed.sharing import leads_work, shares_work
from ._rows import Rows, collect_rows
from .hog import (
    HogBackend,
    HogGrid,
    HogItems,
    check_window,
    cholesky_factor,
    hog_batches,
    stationary_statistics,
    window_weights,
)
from .saving import ImageStep

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["HOGLDA"]


class _Options(TypedDict, total=False):
    """Of `HOGLDA.transform`, besides mirror."""

    num_workers: int
    batch_size: int
    progress: bool
    cache_dir: str | os.PathLike[str] | None
    data_id: str | None
    backend: HogBackend
    device: str | torch.device


@dataclass(eq=False, repr=False)
class HOGLDA(ImageStep):
    """HOG, whitened by the statistics of generic patches: phi = L^-1 (h - mu), with Sigma = L L^T.

    h is the HOG of an image, a grid of blocks with C values each. mu (C,) is the mean of a block and Sigma
    the covariance of the whole grid, both taken from random patches of any images and independent of the
    position in the grid (the covariance of two blocks depends on their offset alone). Sigma is shrunk:
    `ridge` times its mean eigenvalue is added to its diagonal, which is also a floor under its eigenvalues.
    In the paper the similarity of two samples is exp(-||phi_a - phi_b||).

    Args:
        image_size: images are resized to this side (no matter their shape), pixels, a multiple of cell_size.
            Default 96.
        cell_size: side of a cell, pixels. Default 8.
        block_size: side of a block, cells; blocks lie one cell apart. Default 2.
        num_orientations: bins over 180 degrees. Default 9. The defaults give 11 x 11 blocks of 36 values.
        ridge: shrinkage as a multiple of the mean eigenvalue, >= 0, usually 0.01 to 30; towards infinity the
            features become plain HOG minus mu. Default 10: with crops of persons, nearest neighbors by
            posture were best there, and worse than plain HOG's below 1.
        whiten: False leaves L^-1 out: HOG minus mu. Default True.
        window: (x, y), standard deviations of a Gaussian about the image's center, as parts of its sides: the
            values of each block are multiplied by it. Where every image is a box around an object, what lies
            towards its sides is background. Persons: (0.17, 0.5). None (default): all blocks weigh the same.
        normalize: scale rows to unit length, so that ||a - b||^2 = 2 - 2 cos(a, b). Default True.

    Attributes:
        mean_: (C,) float64, mu. None before `fit`, `fit_background` or `load`.
        covariance_: (2 G - 1, 2 G - 1, C, C) float64, the covariance of two blocks by their offset; G blocks
            along a side.
        ridge_: the ridge in use; above `ridge` only if the matrix would not have inverted. None before the
            first `transform` that whitens.

    As a step of a scikit-learn Pipeline it takes images and returns rows.

    Raises:
        TypeError, ValueError: if an argument is no number or out of range.

    Source: section 3.1 of the paper; Hariharan et al. 2012, sections 2 and 3.
    Differs from the paper: neither text gives cells, normalization and ridge. Hariharan et al. use a HOG of
    31 values and plain averages over the pairs of cells at an offset; here they fade towards large offsets,
    so that Sigma is positive semi-definite. The window is an addition.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
        >>> hog = HOGLDA(image_size=32).fit_background(images, num_patches=50, progress=False)
        >>> features, mirrored = hog.transform(images, mirror=True, progress=False)
        >>> features.shape, features.dtype, mirrored.shape
        ((8, 324), dtype('float32'), (8, 324))
    """

    image_size: int = 96
    cell_size: int = 8
    block_size: int = 2
    num_orientations: int = 9
    ridge: float = 10.0
    whiten: bool = True
    window: tuple[float, float] | None = None
    normalize: bool = True
    covariance_: np.ndarray | None = field(default=None, init=False)
    ridge_: float | None = field(default=None, init=False)
    _factor: tuple[float, torch.Tensor] | None = field(default=None, init=False)  # L, and of which ridge

    def __post_init__(self) -> None:
        self._check_settings()

    def _check_settings(self) -> None:
        as_count(self.grid.num_features, "num_features")
        as_real(self.ridge, "ridge", low=0)
        if self.window is not None:
            check_window(self.window)

    @property
    def grid(self) -> HogGrid:
        """The grid of blocks."""
        return HogGrid(self.image_size, self.cell_size, self.block_size, self.num_orientations)

    @property
    def num_features(self) -> int:
        """D, the length of a row."""
        return self.grid.num_features

    def fit(self, images: Any, y: None = None) -> HOGLDA:
        """`fit_background` with its defaults, without a progress bar; y is ignored."""
        return self.fit_background(images, progress=False)

    def fit_background(
        self,
        images: Any,
        *,
        num_patches: int = 2500,
        min_scale: float = 0.5,
        num_workers: int = 0,
        progress: bool = True,
        random_state: int = 0,
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
            random_state: of the patches, from 0. Default 0.
            num_workers, progress, backend, device: as for `transform`.

        Returns:
            self.

        Raises:
            TypeError, ValueError: if images hold no edge at all, or as for `transform`.
            UnreadableImageError: if a file is missing or truncated; the message names it.
        """
        num_patches = as_count(num_patches, "num_patches", 2)
        as_real(min_scale, "min_scale", low=0, high=1, open_low=True)
        items = HogItems(images, self.grid.image_size)
        rng = np.random.default_rng(as_count(random_state, "random_state", 0))
        turns = -(-num_patches // len(items))
        which = np.concatenate([rng.permutation(len(items)) for _ in range(turns)])[:num_patches]
        scale, position = rng.uniform(min_scale, 1, num_patches), rng.random((num_patches, 2))
        items.patches = np.column_stack([which, scale, position, rng.integers(0, 2, num_patches)])
        how: dict[str, Any] = {"backend": backend, "device": device, "num_workers": num_workers}
        batches = hog_batches(items, self.grid, progress=progress, what="background patches", **how)
        rows = np.concatenate([batch for (batch,) in batches])
        mean, covariance = stationary_statistics(rows, self.grid.side)
        middle = covariance[self.grid.side - 1, self.grid.side - 1]  # of a block with itself
        if not np.isfinite(covariance).all() or np.trace(middle) <= 0:
            raise ValueError("the background images hold no edges to learn from: are they blank?")
        self.mean_, self.covariance_, self.ridge_, self._factor = mean, covariance, None, None
        return self

    @overload
    def transform(
        self, images: Any, *, mirror: Literal[False] = False, **options: Unpack[_Options]
    ) -> Rows: ...

    @overload
    def transform(
        self, images: Any, *, mirror: Literal[True], **options: Unpack[_Options]
    ) -> tuple[Rows, Rows]: ...

    @overload
    def transform(
        self, images: Any, *, mirror: bool, **options: Unpack[_Options]
    ) -> Rows | tuple[Rows, Rows]: ...

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
    ) -> Rows | tuple[Rows, Rows]:
        """Features of images, in their order.

        Inside `pml_posets.distributed.shared_work` every rank describes its share of the images and gets the
        rows of all, equal to those of one process; rank 0 alone writes to the cache.

        Args:
            images: a dataset, sequence or array of images, paths or tuples that start with one, see
                `pml_posets.data.as_image`. Random transforms draw the same for an item each time.
            mirror: also features of the horizontally mirrored images. Default False.
            num_workers: processes that read images. Default 0: this one.
            batch_size: images a process hands over at once. Default 256.
            progress: show a progress bar. Default True.
            cache_dir: a folder to keep the features in, see `FeatureCache`. None (default): none.
            data_id: for the cache, see `FeatureCache.key`.
            backend: of HOG, see `features.hog.HogGrid.describe`. Default "torch".
            device: of HOG by torch; whitening is done on the CPU. Default "cpu".

        Returns:
            (N, D) float32, or two of them with mirror: of the images and of the mirrored images.

        Raises:
            TypeError, ValueError: if images are no images, or before `fit_background` or `load`.
            UnreadableImageError: if a file is missing or truncated; the message names it.
            OSError: if the cache folder cannot be written to.
        """
        self._check_fitted()
        how = dict[str, Any](mirror=mirror, num_workers=num_workers, backend=backend, device=device)
        how |= {"batch_size": as_count(batch_size, "batch_size"), "progress": progress and leads_work()}
        names = ["features", "mirrored"][: 1 + mirror]
        if cache_dir is None:
            views = self._described(images, how)
        else:
            cache = FeatureCache(cache_dir)
            settings = {**self.get_params(), "mean": self.mean_, "covariance": self.covariance_}
            key = cache.key(settings, images, data_id)
            views = _cached(cache, key, names, lambda: self._described(images, how))
        return (views[0], views[1]) if mirror else views[0]

    def _described(self, images: Any, how: dict[str, Any]) -> list[Rows]:
        items = HogItems(images, self.grid.image_size)
        mean = np.tile(np.asarray(self.mean_, np.float32), self.grid.side**2)

        def batches(samples: range) -> Iterator[list[Rows]]:
            for batch in hog_batches(items, self.grid, samples, **how):
                yield [as_features(self._finish(view - mean)) for view in batch]

        return collect_rows(len(items), how["batch_size"], 1 + how["mirror"], batches)

    def _check_loaded(self, path: Any) -> None:
        shapes = tuple(np.asarray(value).shape for value in (self.mean_, self.covariance_))
        if shapes not in (((self.grid.channels,), self._covariance_shape), ((), ())):
            raise ValueError(f"{path} is damaged: its statistics do not fit its settings")

    def finish(self, centered: np.ndarray) -> np.ndarray:
        """Features of HOGs h - mu, (N, D) to (N, D) float32: whitened, windowed, scaled as the settings say.

        One description then serves several settings: transform with whiten=False, normalize=False and no
        window, then change the attributes `whiten`, `ridge`, `window` and `normalize` and finish.

        Raises:
            ValueError: for another number of columns, or before `fit_background` or `load`.
        """
        self._check_fitted()
        if centered.ndim != 2 or centered.shape[1] != self.num_features:
            raise ValueError(
                f"centered must have shape (N, {self.num_features}), got {centered.shape}: "
                "is it of another image_size?"
            )
        finished = np.empty(centered.shape, np.float32)
        for start in range(0, len(centered), 2048):
            rows = np.require(centered[start : start + 2048], np.float32, "W")  # torch wants it writable
            finished[start : start + 2048] = self._finish(rows)
        return finished

    @property
    def _covariance_shape(self) -> tuple[int, ...]:
        return (2 * self.grid.side - 1,) * 2 + (self.grid.channels,) * 2

    def _check_fitted(self) -> None:
        self._check_settings()
        if self.mean_ is None:
            raise NotFittedError(
                "HOGLDA needs background statistics: call fit_background(images) or HOGLDA.load(path)"
            )
        if self.covariance_ is not None and self.covariance_.shape != self._covariance_shape:
            raise ValueError("the settings of the grid have changed since fit_background: call it again")

    def _finish(self, rows: np.ndarray) -> np.ndarray:
        if self.whiten:
            solved = torch.linalg.solve_triangular(self._whitener(), torch.from_numpy(rows).T, upper=False)
            rows = solved.T.contiguous().numpy()
        if self.window is not None:
            rows = rows * np.repeat(window_weights(self.grid.centers, self.window), self.grid.channels)
        return unit_rows(rows) if self.normalize else rows

    def _whitener(self) -> torch.Tensor:
        """(D, D) float32 lower triangular L."""
        if self._factor is None or self._factor[0] != self.ridge:
            self.ridge_, factor = cholesky_factor(np.asarray(self.covariance_), self.ridge)
            self._factor = self.ridge, factor
        return self._factor[1]


def _cached(
    cache: FeatureCache, key: CacheKey, names: list[str], make: Callable[[], list[Rows]]
) -> list[Rows]:
    """What the cache holds, on all ranks that share the work; else what `make` returns, put there."""
    entry = cache.load(key)
    complete = entry is not None and all(name in entry for name in names)
    if shares_work():
        complete = all(all_gather_objects(complete))
    if entry is not None and complete:
        return [entry[name] for name in names]
    views = make()
    if leads_work():
        cache.save(key, dict(zip(names, views, strict=True)))
    return views
