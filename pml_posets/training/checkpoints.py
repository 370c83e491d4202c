"""Files that hold a whole run: written whole or not at all, checked when they are read."""

from __future__ import annotations

import errno
import os
import pickle
import re
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._io import atomic_write

__all__ = ["check_settings", "load_checkpoint", "save_checkpoint"]

_FORMAT = 1
_KEPT = (type(None), bool, int, float, complex, str, torch.Size, torch.dtype, torch.device)  # as they are


def save_checkpoint(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a checkpoint that `load_checkpoint` can read: a kill leaves the older file or the whole new one.

    Args:
        path: the file, replaced if it exists.
        content: tensors, numbers, strings, and lists, tuples, sets and dicts of them. NumPy's numbers become
            Python's.

    Raises:
        TypeError: for anything else; the message names the value. Nothing is written.
        OSError: if the file cannot be written; an older one is then as it was.
    """
    path = Path(path)
    plain = {name: _plain(value, name) for name, value in content.items()}
    try:
        with atomic_write(path) as file:
            torch.save({"format": _FORMAT, **plain}, file)
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None:  # torch's writer turns whatever ends it into a RuntimeError
            if isinstance(cause, MemoryError) or not isinstance(cause, Exception):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise OSError(f"cannot write the checkpoint {path} ({error}); an older one is unchanged") from error


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint to the CPU, every byte checked. Nothing in the file is run as code.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if its bytes are damaged, or it is no checkpoint of this version. Anything else, such as
            an OSError of the disk or a MemoryError, says nothing of the file and comes through.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    names: set[str] = set()
    try:
        with zipfile.ZipFile(path) as archive:
            damage = archive.testzip()
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except Exception as error:  # zipfile raises anything on damage
        real = isinstance(error, OSError) and error.errno != errno.EINVAL  # EINVAL: an offset that cannot be
        if real or isinstance(error, MemoryError):
            raise
        damage = str(error)
    try:
        whole = damage is None and "data.pkl" in names
        content = torch.load(path, map_location="cpu", weights_only=True) if whole else None
    except RuntimeError as error:
        if not re.search("PytorchStreamReader|inline_container", str(error)) or "read failed" in str(error):
            raise
        damage = str(error).partition("\n")[0]
    except pickle.UnpicklingError as error:
        lines = str(error).splitlines()
        reason = next((line.strip() for line in lines if "nsupported" in line), lines[0] if lines else "")
        held = f"it holds more than tensors and plain values ({reason})"
        raise ValueError(f"{path} is a whole file, but no checkpoint: {held}") from error
    if damage is not None:
        advice = "restore a copy, or remove it to begin again"
        raise ValueError(f"the checkpoint {path} is damaged or none (wrong: {damage}): {advice}")
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(content, dict) or found != _FORMAT:
        advice = "read it by the program that wrote it, or choose another folder"
        raise ValueError(f"{path} is a whole file, but its format is not {_FORMAT} but {found!r}: {advice}")
    return content


def check_settings(found: Mapping[str, Any], expected: Mapping[str, Any], path: Any) -> None:
    """Check that a checkpoint belongs to this run, or raise a ValueError that lists all differences.

    Args:
        found: settings in the checkpoint, flat.
        expected: those of this run. Tensors are equal if they differ by no more than rounding does.
        path: for the message.

    Example:
        >>> check_settings({"seed": 0, "size": 5}, {"seed": 1, "size": 5}, "a.pt")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: the checkpoint a.pt belongs to another run (there seed=0, here 1): ...
    """
    names = [name for name in {**found, **expected} if not _equal(found.get(name), expected.get(name))]
    if names:
        pairs = ((name, found.get(name), expected.get(name)) for name in names)
        listed = "; ".join(f"there {name}={_shown(old)}, here {_shown(new, old)}" for name, old, new in pairs)
        advice = "use its settings, or another folder. Nothing was changed"
        raise ValueError(f"the checkpoint {path} belongs to another run ({listed}): {advice}")


def _plain(value: Any, name: str) -> Any:
    """The value in types that torch reads with weights_only."""
    if isinstance(value, torch.Tensor):
        return value.detach().as_subclass(torch.Tensor)
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in _KEPT:
        return value
    if isinstance(value, Counter):
        return Counter({key: _plain(number, f"{name}[{key!r}]") for key, number in value.items()})
    if isinstance(value, OrderedDict | defaultdict) or type(value) is dict:
        items = {_plain(key, f"a key of {name}"): _plain(v, f"{name}[{key!r}]") for key, v in value.items()}
        return OrderedDict(items) if isinstance(value, OrderedDict) else items
    if type(value) in (list, tuple, set):
        return type(value)(_plain(item, f"{name}[{i}]") for i, item in enumerate(value))
    for plain in (bool, int, float, str):  # an IntEnum, say
        if isinstance(value, plain):
            return plain(value)
    raise TypeError(
        f"a checkpoint holds tensors, numbers, strings and lists and dicts of them, but {name} is a "
        f"{type(value).__module__}.{type(value).__qualname__} (in the state of a model, loss, optimizer, "
        "scheduler, miner or sampler): give a tensor or plain numbers instead"
    )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and not _rows_that_differ(one, other)
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return False
    return bool(one == other) or bool(one != one and other != other)  # NaN is a setting too


def _rows_that_differ(one: torch.Tensor, other: torch.Tensor) -> list[int]:
    """Indices of the elements that differ by more than 1% of what is usual; both (N,)."""
    scale = torch.cat([one, other]).square().mean().sqrt()
    return (~((one - other).abs() <= 0.01 * scale)).nonzero().flatten().tolist()


def _shown(value: Any, other: Any = None) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    if isinstance(other, torch.Tensor) and other.shape == value.shape:
        rows = _rows_that_differ(value, other)
        return f"others in {len(rows)} of {len(value)} rows (the first is {rows[0]})"
    return f"{len(value)} rows"
