"""A linear embedding learned from augmented views: what changes between views of an image counts little."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import NotFittedError

from .._validation import ArrayLike, as_class_ids, as_count, as_features, as_flag, as_real, unit_rows
from ._rows import Rows, rows_to_fit
from .saving import Saved

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # scikit-learn before 1.6

    def validate_data(step: Any, X: Any, **options: Any) -> Any:
        return step._validate_data(X, **options)


__all__ = ["InstanceLDA"]

_ALIKE = 1e-10  # of all variance: views without any change, but for rounding
_POWER_ITERATIONS = 3  # of the decomposition: the directions that count are well apart


@dataclass(eq=False, repr=False)
class InstanceLDA(Saved, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Linear discriminant analysis in which each image is a class and its augmented views are the samples.

        S_w = sum over views of (x - m_i)(x - m_i)^T / (views - images),    S_b = S_t - S_w
        S_b w = l S_w w,    f(x) = W^T (x - mu),    W^T S_w W = 1

    with m_i the mean of image i's views, mu that of all, S_t the covariance of all, and W the directions of
    the largest l: in these directions images differ most, relative to their views. In f the views of an
    image have the same variance in all directions. For HOG, 8 views were much better than 4. Features may
    be of any kind.

    scikit-learn's `LinearDiscriminantAnalysis` goes through thousands of classes one by one.

    Args:
        num_components: K, columns of the embedding, from 1; at most one less than images, and no more than
            num_directions, are kept. Default 128: with HOG of drawings and of cars nearest neighbors were
            best at about 100, and worse again at several hundred.
        num_directions: principal directions that the features are brought down to first, from 1. Default 600.
        shrinkage: how far S_w is drawn towards a multiple of the identity, in 0..1. Default 0.1.
        normalize: scale rows to unit length. Default True.
        random_state: of the randomized decomposition, from 0. Default 0.

    Attributes:
        mean_: (D,) float32, mu. None before `fit`, like the others.
        weight_: (K, D) float32, the transpose of W.

    Raises:
        TypeError, ValueError: at `fit`, for an argument that is no number or out of range.

    The idea is that of HOG-LDA (section 3.1 of the paper), with scatter about each
    image in the place of generic patches.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> images = np.repeat(rng.normal(size=(20, 1, 5)), 4, axis=1)  # 20 images, 4 views
        >>> views = images + rng.normal(size=(20, 4, 5)) * [9, 9, 9, 0.1, 0.1]
        >>> lda = InstanceLDA(num_components=2).fit(views.reshape(80, 5), np.arange(20).repeat(4))
        >>> lda.transform(images[:, 0]).shape
        (20, 2)
    """

    num_components: int = 128
    num_directions: int = 600
    shrinkage: float = 0.1
    normalize: bool = True
    random_state: int = 0
    weight_: np.ndarray | None = field(default=None, init=False)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = []  # float32 whatever comes in
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> InstanceLDA:
        """Learn the embedding.

        Args:
            X: (M, D) float32, features of views: of several images, several of each.
            y: (M,) integers, the image that each row is a view of, such as `WithViews.instances`.
                Pseudo-labels will do as well; rows of -1 are left out.

        Returns:
            self.

        Raises:
            TypeError, ValueError: for invalid features or arguments, or views without any variance.
        """
        from scipy.linalg import eigh
        from sklearn.covariance import empirical_covariance, shrunk_covariance
        from sklearn.decomposition import PCA

        components = as_count(self.num_components, "num_components")
        directions = as_count(self.num_directions, "num_directions")
        as_real(self.shrinkage, "shrinkage", low=0, high=1)
        rows, owners, count = self._views(X, y)
        pca = PCA(
            min(directions, rows.shape[1], len(rows)),
            svd_solver="randomized",
            iterated_power=_POWER_ITERATIONS,
            random_state=as_count(self.random_state, "random_state", 0),
        )
        shorter = pca.fit_transform(rows)  # (M, P), P directions
        total = empirical_covariance(shorter, assume_centered=True)
        within = empirical_covariance(shorter - _class_means(shorter, owners), assume_centered=True)
        within *= len(owners) / (len(owners) - count)
        between = total - within
        if within.trace() <= _ALIKE * total.trace():
            raise ValueError("the views of each image are all alike: give views that differ")
        within = shrunk_covariance(within, self.shrinkage)
        kept = min(components, len(within), count - 1)
        largest = [len(within) - kept, len(within) - 1]
        try:
            scalings = eigh(between, within, subset_by_index=largest)[1][:, ::-1]  # (P, K)
        except np.linalg.LinAlgError as error:
            raise ValueError(
                f"views do not differ at all in some direction: shrinkage must be above 0, got "
                f"{self.shrinkage} ({error})"
            ) from error
        self.mean_ = np.asarray(pca.mean_, np.float32)
        self.weight_ = np.ascontiguousarray(scalings.T @ pca.components_, np.float32)
        return self

    def _views(self, X: ArrayLike, y: ArrayLike | None) -> tuple[Rows, np.ndarray, int]:
        """The rows that are views of an image, of which, and how many images there are."""
        if y is None:
            raise ValueError(
                "InstanceLDA requires y to be passed, but the target y is None: give the image that each row "
                "is a view of"
            )
        if isinstance(y, np.ndarray) and y.dtype.hasobject:
            raise ValueError("Unknown label type: y must be integers, got an array of objects")
        rows = rows_to_fit(_as_rows(self, X, reset=True))
        owners = as_class_ids(y, len(rows), "instances")
        if (owners < 0).any():
            rows, owners = rows[owners >= 0], owners[owners >= 0]
        count = len(np.unique(owners))
        if count < 2 or count == len(owners):
            raise ValueError(
                f"instances must name two images or more, and some of them twice, got {count} of "
                f"{len(owners)} samples: give several views of each image"
            )
        return rows, owners, count

    def transform(self, X: ArrayLike) -> Rows:
        """(N, D) features to (N, K) float32.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: for features that are wrong or of another width.
        """
        mean, weight = self._fitted()
        embedded = _as_rows(self, X, reset=False) @ weight.T - weight @ mean
        return unit_rows(embedded) if as_flag(self.normalize, "normalize") else embedded

    def linear(self) -> torch.nn.Linear:
        """The same as a module, such as PML takes for an "embedder": (B, D) -> (B, K), not normalized.

        Raises:
            NotFittedError: before `fit`.
        """
        mean, weight = self._fitted()
        module = torch.nn.Linear(len(mean), len(weight))
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(weight))
            module.bias.copy_(torch.from_numpy(-weight @ mean))
        return module

    @property
    def _n_features_out(self) -> int:
        return len(self._fitted()[1])

    def _fitted(self) -> tuple[np.ndarray, Any]:
        if self.mean_ is None or self.weight_ is None:
            raise NotFittedError("InstanceLDA has learned nothing yet: call fit(features, instances)")
        return self.mean_, self.weight_


def _as_rows(step: InstanceLDA, features: Any, reset: bool) -> Rows:
    """(N, D) float32, finite, of the width that was fitted."""
    if isinstance(features, torch.Tensor):
        features = as_features(features)
    with config_context(assume_finite=True):  # as_features says which row is not
        return as_features(validate_data(step, features, reset=reset, dtype=np.float32))


def _class_means(rows: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """(M, P) to (M, P): for each row the mean of the rows of its class."""
    _, codes, counts = np.unique(owners, return_inverse=True, return_counts=True)
    order = np.argsort(codes, kind="stable")
    sums = np.add.reduceat(rows[order], np.cumsum(counts) - counts, axis=0)
    return (sums / counts[:, None])[codes]
