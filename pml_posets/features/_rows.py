"""Rows of features: filled a batch at a time, shared by ranks where a script says so; linear maps of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

try:
    from sklearn.utils.validation import _check_feature_names
except ImportError:  # scikit-learn before 1.6

    def _check_feature_names(estimator: Any, X: Any, *, reset: bool) -> None:
        estimator._check_feature_names(X, reset=reset)


from .._validation import as_features, as_flag, scale_of, unit_rows
from ..distributed.sharing import gather_shares

Rows = NDArray[np.float32]


class LinearStep(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base of steps that learn f(x) = W (x - mu)."""

    normalize: bool
    mean_: Rows
    weight_: Rows

    @property
    def _n_features_out(self) -> int:
        return len(self.weight_)

    def _rows_to_fit(self, features: ArrayLike) -> Rows:
        rows = rows_to_fit(features)
        _check_feature_names(self, features, reset=True)
        return rows

    def transform(self, features: ArrayLike) -> Rows:
        """(N, D) features to (N, K) float32."""
        check_is_fitted(self)
        rows = as_features(features)
        if rows.shape[1] != len(self.mean_):
            raise ValueError(f"features must have {len(self.mean_)} columns, as fitted, got {rows.shape}")
        _check_feature_names(self, features, reset=False)
        embedded = np.asarray((rows - self.mean_) @ self.weight_.T, np.float32)
        return unit_rows(embedded) if as_flag(self.normalize, "normalize") else embedded


def rows_to_fit(features: ArrayLike) -> Rows:
    """Features as (N, D) float32 whose products fit float32 too."""
    rows = as_features(features)
    if (largest := scale_of(rows)) != 1:
        raise ValueError(
            f"features must be of a size whose squares fit float32, got {largest:.0e}: scale them"
        )
    return rows


def collect_rows(
    num_samples: int, batch_size: int, num_views: int, batches: Callable[[range], Iterator[list[np.ndarray]]]
) -> list[Rows]:
    """All rows of each view, (N, D), in order of the samples.

    `batches` takes the samples to make and gives for each batch of them, in order, an array (B, D) a view.
    """

    def filled(samples: range) -> list[Rows]:
        views: list[Rows] = []
        start = 0
        for batch in batches(samples):
            views = views or [np.empty((len(samples), part.shape[1]), np.float32) for part in batch]
            for view, part in zip(views, batch, strict=True):
                view[start : start + len(part)] = part
            start += len(batch[0])
        return views or [np.empty((0, 0), np.float32)] * num_views  # a rank without any sample

    return gather_shares(num_samples, batch_size, filled)
