"""Checks of what a user gives: each returns the value in the one form that the package computes with.

Errors say what was expected, what was found and what to do.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

ArrayLike: TypeAlias = "np.ndarray | torch.Tensor"


def as_count(value: Any, name: str, least: int = 1) -> int:
    """An integer of at least `least`."""
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
    """A finite number (or tensor of one) between `low` and `high`; an open end is outside of the range."""
    try:
        if isinstance(value, (bool, np.bool_, str, bytes)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    below = number <= low if open_low else number < low
    above = number >= high if open_high else number > high
    if not math.isfinite(number) or below or above:
        wanted = f"in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        if math.isinf(low) and math.isinf(high):
            wanted = "finite"
        elif math.isinf(high):
            wanted = f"{'above' if open_low else 'at least'} {low:g}"
        elif math.isinf(low):
            wanted = f"{'below' if open_high else 'at most'} {high:g}"
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return number


def kind_of(value: Any) -> str:
    """The type of a value with its article, for errors: "an ImageList"."""
    name = type(value).__qualname__
    return f"{'an' if name[0] in 'AEIOUaeio' else 'a'} {name}"


def as_flag(value: Any, name: str) -> bool:
    """True or False, of Python or numpy."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_module(value: Any, name: str, advice: str = "", optional: bool = False) -> None:
    """Raise unless it is a network, or None if that is allowed."""
    if not isinstance(value, torch.nn.Module) and not (optional and value is None):
        found = f"the class {value.__name__}" if isinstance(value, type) else kind_of(value)
        raise TypeError(f"{name} must be a torch.nn.Module{' or None' * optional}, got {found}{advice}")


def as_device(device: Any) -> torch.device:
    """A device by its name or number, if it can be there."""
    if isinstance(device, bool) or not isinstance(device, str | int | torch.device):
        raise TypeError(f'device must be "cpu", "cuda", "cuda:1", ... or a torch.device, got {device!r}')
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f'device must be one that torch knows ("cpu", "cuda:1"), got {device!r}') from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f'device "{found}" asked for, but torch sees no GPU: use device="cpu"')
    return found


def check_option(value: Any, name: str, options: Any) -> Any:
    """`value`, if it is one of the Literal `options`."""
    allowed = get_args(options)
    if not any(isinstance(value, type(option)) and value == option for option in allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def check_scale(scale: Any, example: str) -> None:
    """Raise unless it is a range of magnifications."""
    if np.shape(scale) != (2,) or not 0 < scale[0] <= scale[1] < math.inf:
        raise ValueError(f"scale must be a range of two numbers above 0, got {scale}: try {example}")


def check_shape(x: Any, name: str, shape: tuple[int | str, ...], why: str = "", advice: str = "") -> None:
    """Raise a ValueError unless `x` has this shape, in which a letter stands for any length."""
    found = tuple(x.shape)
    if len(found) != len(shape) or any(
        n != m for n, m in zip(found, shape, strict=True) if not isinstance(m, str)
    ):
        shown = str(shape).replace("'", "")
        raise ValueError(f"{name} must have shape {shown}{why}, got {found}{advice}")


def as_array(values: Any) -> NDArray[Any]:
    """Values or a tensor on any device as an array."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


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
    """(N, D) numbers as C-contiguous float32, finite, N and D from 1; the input itself where it is that."""
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
    check_shape(array, name, ("N", "D"), advice=": flatten them per sample")
    if array.size == 0:
        raise ValueError(
            f"{name} must hold at least one sample of one dimension, found {len(array)} sample(s) and "
            f"{array.shape[1]} feature(s) (shape={array.shape}) while a minimum of 1 is required: give some"
        )
    _warn_if_rounded(array[:: -(-len(array) // 1000)], name)
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


def _warn_if_rounded(sample: NDArray[Any], name: str) -> None:
    """Warn of rows, far from the origin, that float32 cannot tell apart."""
    if sample.dtype.itemsize < 8:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        lost, spread = np.abs(sample.astype(np.float32) - sample).max(), np.ptp(sample, axis=0).max()
    if 0 < spread < 100 * lost < math.inf:
        warnings.warn(
            f"{name} lie so far from the origin that float32 cannot tell them apart (they differ by "
            f"{spread:g} at most, rounded by {lost:g}): subtract their mean first",
            stacklevel=4,
        )


def scale_of(rows: NDArray[np.float32]) -> np.float32:
    """What rows are to be divided by so that squares of their numbers fit float32: 1 where they do."""
    largest = np.float32(np.abs(rows).max(initial=0))
    return np.float32(1) if largest == 0 or 1e-12 < largest < 1e12 else largest


def unit_rows(features: Any, name: str = "features") -> NDArray[np.float32]:
    """Features scaled to length 1, (N, D) float32, as a new array; a row of zeros stays one."""
    rows = as_features(features, name)
    # Scaled by the largest number first: squares of very long or short rows would leave float32.
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))[:, None]  # (N, 1)
    scaled = np.divide(rows, np.where(largest > 0, largest, 1), dtype=np.float32)
    length = np.sqrt(np.einsum("nd,nd->n", scaled, scaled))[:, None]
    scaled /= np.where(length > 0, length, 1)
    return scaled


def as_numbers(values: Any, name: str) -> NDArray[Any]:
    """Real numbers, NaN too, as an array; float32 and float64 stay what they are, all else is float64."""
    array = as_array(values.float() if getattr(values, "dtype", None) == torch.bfloat16 else values)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def as_integers(values: Any, name: str, kind: str = "", advice: str = "") -> NDArray[Any]:
    """Integers as an array of their dtype; int64 where there are none."""
    array = as_array(values)
    array = array if array.size else array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers{kind}, got dtype {array.dtype}{advice}")
    return array


def as_row_numbers(values: Any, name: str, num_rows: int) -> NDArray[np.int64]:
    """(Q,) integers in 0..num_rows - 1 as int64."""
    rows = as_integers(values, name, " (row numbers)")
    check_shape(rows, name, ("Q",))
    outside = rows[(rows < 0) | (rows >= num_rows)]
    if len(outside):
        raise ValueError(f"{name} must lie in 0..{num_rows - 1}, got {outside[0]}")
    return rows.astype(np.int64, copy=False)


def _check_length(labels: NDArray[Any], num_samples: int, name: str) -> None:
    filtered = ": was the dataset filtered after the features were extracted?"
    check_shape(labels, name, (num_samples,), " to match the samples", filtered)


def as_labels(labels: Any, num_samples: int, name: str = "labels", contiguous: bool = True) -> np.ndarray:
    """Surrogate labels, (N,) integers from -1, as int64; contiguous: of 0..C-1 without gaps."""
    advice = ": convert them with .astype(int) if they are whole numbers"
    labels = as_integers(labels, name, " (-1 for unassigned, else 0..C-1)", advice)
    labels = labels.astype(np.int64, copy=False)
    _check_length(labels, num_samples, name)
    if labels.min(initial=0) < -1:
        raise ValueError(
            f"{name} must be -1 (unassigned) or a class id from 0, got {labels.min()} "
            f"at index {labels.argmin()}: mark every unassigned sample by -1"
        )
    num_classes, num_found = int(labels.max(initial=-1)) + 1, np.unique(labels[labels >= 0]).size
    if contiguous and num_found != num_classes:
        raise ValueError(
            f"{name} must use every class id from 0 to the highest, got {num_found} classes with "
            f"ids up to {num_classes - 1}: renumber them with pml_posets.posets.relabel"
        )
    return labels


def as_class_ids(labels: Any, num_samples: int, name: str = "labels") -> NDArray[np.int64]:
    """Class ids, (N,) integers, as int64: any id is a class, -1 too, and none passes through a float."""
    names = "number names with np.unique(..., return_inverse=True)"
    array = as_integers(labels, name, advice=f": convert whole numbers with .astype(int), and {names}")
    _check_length(array, num_samples, name)
    if array.dtype == np.uint64 and array.max(initial=0) > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must fit int64, found {array.max()}: number them with np.unique")
    return array.astype(np.int64, copy=False)


def as_sources(
    sources: Any, num_samples: int, name: str = "sources", like: str = " to match the samples"
) -> np.ndarray:
    """Sources as a validated (N,) array of numbers or strings."""
    array = np.asarray(sources)
    check_shape(array, name, (num_samples,), like)
    known = (str, int, float, np.integer, np.floating)
    for sample, source in enumerate(array.tolist() if array.dtype.kind not in "iuUS" else ()):
        if not isinstance(source, known) or source != source:
            raise TypeError(
                f"{name} must be ints or strings, one for each sample, got {source!r} at {sample}"
            )
    return np.asarray(array.tolist()) if array.dtype == object else array


def as_codes(sources: Any, num_samples: int) -> np.ndarray | None:
    """Sources as consecutive int64 numbers from 0; None for None."""
    if sources is None:
        return None
    return np.unique(as_sources(sources, num_samples), return_inverse=True)[1].astype(np.int64)


def as_flips(flips: Any, num_samples: int, mirrored: np.ndarray | None) -> np.ndarray:
    """Flip flags as a validated (N,) bool array, all False for None; a flag needs mirrored features."""
    if flips is None:
        return np.zeros(num_samples, bool)
    flips = as_array(flips)
    if flips.dtype != np.bool_:
        raise TypeError(f"flips must be booleans (True: mirror the sample), got dtype {flips.dtype}")
    check_shape(flips, "flips", (num_samples,), " to match the samples")
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
