"""Checks of what a user gives: each returns the value in the one form that the package computes with.

Errors say what was expected, what was found and what to do.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

ArrayLike: TypeAlias = "np.ndarray | torch.Tensor"


def as_count(value: Any, name: str, least: int = 1) -> int:
    """An integer of at least `least`, or a TypeError or ValueError that names it."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {count}")
    return count


def as_real(
    value: Any,
    name: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """A finite real number in a range, as a float.

    Args:
        value: a Python or NumPy number, or a tensor of one element.
        name: what the errors call it.
        low, high: the range. Default: any finite number.
        open_low, open_high: whether an end is outside of the range. Default False.

    Returns:
        The number.

    Raises:
        TypeError: if it is no real number (a bool is none).
        ValueError: if it is not finite, or outside of the range.

    Example:
        >>> as_real(1.0, "decay", low=0, high=1, open_high=True)
        Traceback (most recent call last):
        ValueError: decay must be in [0, 1), got 1.0
    """
    try:
        if isinstance(value, (bool, np.bool_, str, bytes)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    below = number <= low if open_low else number < low
    above = number >= high if open_high else number > high
    if not math.isfinite(number) or below or above:
        if math.isinf(low) and math.isinf(high):
            wanted = "finite"
        elif math.isinf(high):
            wanted = f"{'above' if open_low else 'at least'} {low:g}"
        elif math.isinf(low):
            wanted = f"{'below' if open_high else 'at most'} {high:g}"
        else:
            wanted = f"in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return number


def check_option(value: Any, name: str, options: Any) -> Any:
    """`value`, if it is one of the Literal `options`, or an error that lists them."""
    allowed = get_args(options)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


_checked: ContextVar[tuple[Any, ...]] = ContextVar("checked", default=())


@contextmanager
def checked(*features: NDArray[np.float32] | None) -> Iterator[None]:
    """Let `as_features` inside take these very arrays, known to be valid, without scanning them again."""
    token = _checked.set((*_checked.get(), *(array for array in features if array is not None)))
    try:
        yield
    finally:
        _checked.reset(token)


def as_features(features: Any, name: str = "features") -> NDArray[np.float32]:
    """Bring features into the one form that the package computes with, or say what is wrong with them.

    Args:
        features: (N, D) numbers, an array, a nested list or a tensor on any device.
        name: what the error messages call them.

    Returns:
        (N, D) float32, C-contiguous, all finite, N >= 1, D >= 1; the input itself where it is that already.

    Raises:
        TypeError: they are not real numbers.
        ValueError: they are not 2-D, are empty, or hold a NaN or an infinite number (also after the cast).

    Example:
        >>> as_features([[0, 1], [2, 3]]).dtype
        dtype('float32')
    """
    if any(features is known for known in _checked.get()):
        return features
    if isinstance(features, (list, tuple)) and features and isinstance(features[0], torch.Tensor):
        features = torch.stack(list(features))
    if isinstance(features, torch.Tensor):
        features = features.detach().to("cpu", torch.float32).numpy()
    if hasattr(features, "toarray"):
        raise TypeError(f"{name} must be dense, sparse data is not supported: pass {name}.toarray()")
    array = np.asarray(features)
    if array.dtype.kind == "O":
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name} must hold real numbers: {error}") from None
    if array.dtype.kind not in "fiu":
        hint = ": Complex data not supported" if array.dtype.kind == "c" else ""
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}{hint}")
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape (N, D), got {array.shape}: flatten them per sample")
    if array.size == 0:
        raise ValueError(
            f"{name} must hold at least one sample of one dimension, found {len(array)} sample(s) and "
            f"{array.shape[1]} feature(s) (shape={array.shape}) while a minimum of 1 is required: give some"
        )
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    step = max(1, 2**24 // array.shape[1])
    for start in range(0, len(array), step):
        bad = np.flatnonzero(~np.isfinite(array[start : start + step]).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{name} must be finite, but row {start + bad[0]} holds a NaN or an infinite value: "
                "check the model or the images they come from"
            )
    return array


def unit_rows(features: Any, name: str = "features") -> NDArray[np.float32]:
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


def as_labels(labels: Any, num_samples: int, name: str = "labels", contiguous: bool = True) -> np.ndarray:
    """Surrogate labels as a validated int64 array.

    Args:
        labels: (N,) integers, array or tensor or list: -1 for an unassigned sample, else its class.
        num_samples: N, the number of samples the labels must match.
        name: what the errors call them.
        contiguous: also demand that the classes are 0..C-1, none empty. Default True.

    Returns:
        (N,) int64, a new array or the one given.

    Raises:
        TypeError: if the labels are no integers.
        ValueError: for another shape, a label below -1, or a class without a member.

    Example:
        >>> as_labels([0, -1, 0, 1], num_samples=4)
        array([ 0, -1,  0,  1])
    """
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    if labels.size == 0 and num_samples == 0:
        return np.zeros(0, np.int64)
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be integers (-1 for unassigned, else 0..C-1), got dtype {labels.dtype}: "
            "convert them with .astype(int) if they are whole numbers"
        )
    if labels.shape != (num_samples,):
        raise ValueError(
            f"{name} must have shape ({num_samples},) to match the samples, got {labels.shape}: "
            "was the dataset filtered after the features were extracted?"
        )
    labels = labels.astype(np.int64, copy=False)
    if labels.min() < -1:
        raise ValueError(
            f"{name} must be -1 (unassigned) or a class id from 0, got {labels.min()} "
            f"at index {labels.argmin()}: mark every unassigned sample by -1"
        )
    if contiguous:
        num_classes = int(labels.max()) + 1
        num_found = np.unique(labels[labels >= 0]).size
        if num_found != num_classes:
            raise ValueError(
                f"{name} must use every class id from 0 to the highest, got {num_found} classes with "
                f"ids up to {num_classes - 1}: renumber them with pml_posets.posets.relabel"
            )
    return labels


def as_class_ids(labels: Any, num_samples: int, name: str = "labels") -> NDArray[np.int64]:
    """Class ids as a validated int64 array, whatever whole numbers they are.

    Unlike `as_labels`, which is about surrogate classes, any id is a class here, -1 too,
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
        >>> as_class_ids([7, -1, 2**40], 3)
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


def as_codes(sources: Any, num_samples: int) -> np.ndarray | None:
    """Sources, (N,) ints or strings, as consecutive int64 numbers from 0; None for None."""
    if sources is None:
        return None
    names = np.asarray(sources)
    if names.shape != (num_samples,):
        raise ValueError(f"sources must have shape ({num_samples},) to match the samples, got {names.shape}")
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def as_flips(flips: Any, num_samples: int, mirrored: np.ndarray | None) -> np.ndarray:
    """Flip flags as a validated (N,) bool array, all False for None; a flag needs mirrored features."""
    if flips is None:
        return np.zeros(num_samples, bool)
    if isinstance(flips, torch.Tensor):
        flips = flips.detach().cpu().numpy()
    flips = np.asarray(flips)
    if flips.dtype != np.bool_:
        raise TypeError(f"flips must be booleans (True: mirror the sample), got dtype {flips.dtype}")
    if flips.shape != (num_samples,):
        raise ValueError(f"flips must have shape ({num_samples},) to match the samples, got {flips.shape}")
    if mirrored is None and flips.any():
        raise ValueError(
            f"flips mark {int(flips.sum())} samples as mirrored, but there are no mirrored features: "
            "pass mirrored=, the features of the mirrored images"
        )
    return flips


def as_mirrored(mirrored: Any, features: np.ndarray) -> np.ndarray | None:
    """Mirrored features as a validated float32 array of the same shape as the features, or None."""
    if mirrored is None:
        return None
    mirrored = as_features(mirrored, name="mirrored")
    if mirrored.shape != features.shape:
        raise ValueError(
            f"mirrored must have the shape {features.shape} of the features, got {mirrored.shape}: "
            "it holds the features of the same images, mirrored, in the same order"
        )
    return mirrored
