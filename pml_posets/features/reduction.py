"""Fewer dimensions for features, and several features as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import numpy as np

from .._validation import ArrayLike, as_count, as_features, as_mirrored, as_real, unit_rows
from ._rows import Rows

__all__ = ["combine", "principal_components"]

_SAMPLE = 20_000


@overload
def principal_components(
    features: ArrayLike, count: int, mirrored: None = None, *, normalize: bool = True, random_state: int = 0
) -> Rows: ...


@overload
def principal_components(
    features: ArrayLike, count: int, mirrored: ArrayLike, *, normalize: bool = True, random_state: int = 0
) -> tuple[Rows, Rows]: ...


def principal_components(
    features: ArrayLike,
    count: int,
    mirrored: ArrayLike | None = None,
    *,
    normalize: bool = True,
    random_state: int = 0,
) -> Rows | tuple[Rows, Rows]:
    """Features in their first principal directions: shorter rows with nearly the same cosines.

    The directions are those of the features as they are, not centered, taken from up to 20,000 rows by a
    randomized decomposition. HOG loses next to nothing at 256, and a neighbor search gains in proportion.

    Args:
        features: (N, D) float32.
        count: directions to keep, from 1. N features span no more than N directions: K = min(count, D, N) are
            kept, or all D, and nothing is changed but the scale, where count is D or more.
        mirrored: (N, D) float32, features of the mirrored images, brought into the same directions.
        normalize: scale rows to unit length. Default True.
        random_state: of the decomposition. Default 0.

    Returns:
        (N, K) float32, new arrays, or two of them with `mirrored`.

    Raises:
        TypeError, ValueError: for features that are wrong or do not match, or count < 1.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(50, 3)) @ np.eye(3, 40)
        >>> principal_components(features, 3).shape
        (50, 3)
    """
    count = as_count(count, "count")
    plain = as_features(features)
    turned = as_mirrored(mirrored, plain)
    views = [plain] if turned is None else [plain, turned]
    if count < plain.shape[1]:
        from sklearn.utils.extmath import randomized_svd

        sample = plain[:: -(-len(plain) // _SAMPLE)]
        kept = min(count, len(sample))
        directions = randomized_svd(sample, kept, n_iter=3, random_state=random_state)[2].T  # (D, K)
        views = [view @ directions for view in views]
    views = [unit_rows(view) if normalize else np.array(view) for view in views]
    return views[0] if turned is None else (views[0], views[1])


@overload
def combine(parts: Sequence[tuple[ArrayLike, float]]) -> Rows: ...


@overload
def combine(parts: Sequence[tuple[tuple[ArrayLike, ArrayLike], float]]) -> tuple[Rows, Rows]: ...


def combine(
    parts: Sequence[tuple[ArrayLike | tuple[ArrayLike, ArrayLike], float]],
) -> Rows | tuple[Rows, Rows]:
    """Several features as one, so that squared distances of their unit rows add up by weight.

        ||x_i - x_j||^2 = sum over parts of w_p ||u_pi - u_pj||^2,    x = [sqrt(w_1) u_1, sqrt(w_2) u_2, ...]

    With weights that sum to 1 the rows have unit length, and cosines add up likewise. As a step of a
    scikit-learn Pipeline: `FeatureUnion` of steps with unit rows, `transformer_weights` the roots sqrt(w_p).

    Args:
        parts: (features, weight) of each: (N, D_p) of any scale, or a pair of these, of the images and of the
            mirrored images; weight above 0.

    Returns:
        (N, sum of D_p) float32, or a pair of them.

    Raises:
        TypeError, ValueError: for no parts, features of different samples, or a weight not above 0.

    Example:
        >>> rows = combine([(np.eye(3), 0.7), (2 * np.ones((3, 1)), 0.3)])
        >>> rows.shape, round(float(np.square(rows[0] - rows[1]).sum()), 3)
        ((3, 4), 1.4)
    """
    if not len(parts):
        raise ValueError("parts must hold at least one pair (features, weight), got none")
    if any(not isinstance(part, tuple | list) or len(part) != 2 for part in parts):
        raise TypeError("each part must be a pair (features, weight): give [(features, 0.5), ...]")
    paired = [isinstance(features, tuple) for features, _ in parts]
    if any(paired) != all(paired):
        raise ValueError("parts must all be features, or all be pairs of features and mirrored ones")
    views: list[list[Rows]] = [[] for _ in range(1 + paired[0])]
    for p, (features, weight) in enumerate(parts):
        root = math.sqrt(as_real(weight, f"weight {p}", low=0, open_low=True))
        for view, rows in zip(views, features if paired[0] else [features], strict=True):
            view.append(unit_rows(rows, f"features {p}") * np.float32(root))
            if len(view[-1]) != len(views[0][0]):
                raise ValueError(
                    f"features {p} must be of the same samples as the first, got {len(view[-1])} and "
                    f"{len(views[0][0])} rows"
                )
    joined = [np.hstack(view) for view in views]
    return joined[0] if len(joined) == 1 else (joined[0], joined[1])
