"""What the measures check about their input, and the one form they bring it into."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..neighbors.nearest import as_features


def as_classes(labels: Any, num_samples: int, name: str = "labels") -> NDArray[np.int64]:
    """Class ids as a validated int64 array, whatever whole numbers they are.

    Unlike `pml_posets.classes.as_labels`, which is about surrogate classes, any id is a class here, -1 too,
    and ids may have gaps. No id passes through a float, so that none are merged.

    Args:
        labels: (N,) integers, array or tensor or list.
        num_samples: N, the number of samples the labels must match.
        name: what the errors call them.

    Returns:
        (N,) int64.

    Raises:
        TypeError: if they are no integers.
        ValueError: for another shape, or an id that int64 does not hold.

    Example:
        >>> as_classes([7, -1, 2**40], 3)
        array([            7,            -1, 1099511627776])
    """
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    array = np.asarray(labels)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be integers, got dtype {array.dtype}: convert whole numbers with .astype(int), "
            "and number names with np.unique(names, return_inverse=True)[1]"
        )
    if array.shape != (num_samples,):
        raise ValueError(
            f"{name} must have shape ({num_samples},) to match the samples, got {array.shape}: "
            "give one class id a sample"
        )
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(
            f"{name} must fit int64, found {array.max()}: number them with "
            "np.unique(labels, return_inverse=True)[1]"
        )
    return array.astype(np.int64, copy=False)


def unit_rows(features: ArrayLike | torch.Tensor, name: str = "features") -> NDArray[np.float32]:
    """Features scaled to length 1, as a new array; a row of zeros stays one.

    Args:
        features: (N, D) numbers, finite.
        name: what the errors call them.

    Returns:
        (N, D) float32.

    Raises:
        TypeError, ValueError: as `pml_posets.neighbors.as_features`.

    Example:
        >>> unit_rows([[3.0, 4.0], [0.0, 0.0]]).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    rows = as_features(features, name)
    # Scaled by the largest number first: squares of very long or short rows would leave float32.
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))[:, None]  # (N, 1)
    scaled = np.divide(rows, np.where(largest > 0, largest, 1), dtype=np.float32)
    length = np.sqrt(np.einsum("nd,nd->n", scaled, scaled))[:, None]
    scaled /= np.where(length > 0, length, 1)
    return scaled


def as_numbers(values: Any, name: str) -> NDArray[Any]:
    """Real numbers as an array; float32 and float64 stay what they are, all else becomes float64.

    Args:
        values: array, nested list or tensor on any device, of any shape.
        name: what the error calls them.

    Returns:
        The array, NaN and infinite numbers and all; the input itself where it is one already.

    Raises:
        TypeError: if they are no real numbers.

    Example:
        >>> as_numbers([[1, 2]], "boxes").dtype
        dtype('float64')
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
