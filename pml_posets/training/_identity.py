"""The settings and the data of a run, flat and comparable with those of another run."""

from __future__ import annotations

import argparse
import dis
import hashlib
import inspect
import os
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from .._random import derive_seeds
from .._sketch import sketch
from ..data.datasets import IndexedDataset
from ..posets import Posets

_PLAIN = (
    *(bool, int, float, complex, str, bytes, range, slice, Enum, os.PathLike),
    *(np.generic, np.ndarray, torch.Tensor, torch.dtype, torch.Size),
)
_SAMPLES, _SAMPLES_AT_HAND = 32, 4096  # of the data that are looked at
_RUN_STATE = (Posets, Dataset, Sampler, torch.device, torch.Generator)
_NO_SETTINGS = {"training", "last_epoch", "verbose", "optimizer"}
_LIBRARIES = ("builtins", "pml_posets", "pytorch_metric_learning", "torch", "torchvision", "numpy", "sklearn")
_SETTINGS = (argparse.Namespace, types.SimpleNamespace)
_STORING = ("STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF", "DELETE_ATTR")
_LOADING = ("LOAD_ATTR", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_CLASSDEREF")
_WRITING_ITEMS = ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE")
_WRITING = (
    *("append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse"),
    *("add", "discard", "update", "setdefault", "popitem"),
)
_CONSTRUCTORS = ("__init__", "__post_init__", "__new__")
_NO_GROUP_SETTINGS = {"params", "lr", "initial_lr", "capturable", "foreach", "fused", "differentiable"}


def describe_data(dataset: Any) -> dict[str, Any]:
    """What is known of a dataset: how many samples, names of files, and some of its images.

    Up to 32 samples are read (of a list or array up to 4096), each under a fixed seed, so that their
    augmentation counts too; where that changes from one reading to the next, the images are left out. Sizes
    of files and settings of a `transform` count as well.
    """
    inner = dataset.dataset if isinstance(dataset, IndexedDataset) else dataset
    known: dict[str, Any] = {"samples": len(inner)}
    for name in ("paths", "samples", "imgs"):
        files = getattr(inner, name, None)
        if isinstance(files, list | tuple) and files:
            paths = [item[0] if isinstance(item, tuple) else item for item in files]
            if all(isinstance(path, str | os.PathLike) for path in paths):
                names = "\n".join(map(os.path.basename, paths))
                known["file names"] = _digest(names.encode("utf-8", "surrogateescape"))
                with suppress(OSError):  # the run will say which cannot be read
                    known["file sizes"] = _digest(repr([os.path.getsize(path) for path in paths]).encode())
                break
    layer = inner
    while layer is not None:
        if (transform := getattr(layer, "transform", None)) is not None:
            known |= {f"transform {key}": value for key, value in describe(transform).items()}
        layer = getattr(layer, "dataset", None)
    at_hand = isinstance(inner, list | tuple | np.ndarray | torch.Tensor)
    limit = _SAMPLES_AT_HAND if at_hand else _SAMPLES
    indices = np.unique(np.linspace(0, len(inner) - 1, min(limit, len(inner))).astype(int)).tolist()
    images, again = _images(inner, indices), _images(inner, indices[:4])
    if images is not None and again is not None and torch.equal(images[: len(again)], again):
        known["images"] = images
    return known


def _images(dataset: Any, indices: list[int]) -> torch.Tensor | None:
    """(n,) a number for each image; None if they are no arrays of finite numbers."""
    indexed = IndexedDataset(dataset)
    items = [indexed[index, derive_seeds(index)[0]][0] for index in indices]
    try:
        rows = [np.asarray(item, np.float32).reshape(1, -1) for item in items]
        return torch.cat([sketch(row / row.size**0.5) for row in rows])
    except (TypeError, ValueError, RuntimeError):
        return None


def describe(thing: Any) -> dict[str, Any]:
    """The settings of an object and of all that it is made of, flat: {"distance.p": 2, ...}.

    Settings are the constructor's arguments that the object keeps under their names (as scikit-learn, torch
    and PML do), all its public attributes that are floats or strings, what `extra_repr` shows of a module,
    the parameter groups of an optimizer, the shapes of weights and which are frozen. Functions count by the
    constants and names in their code, and by plain values and functions that they read from around them.
    """
    known: dict[str, Any] = {}
    pending = [*reversed(_parts_of(thing))] if _has_parts(thing) else [("value", thing)]
    seen = {id(thing)}
    while pending:
        name, value = pending.pop()
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, _RUN_STATE):
            continue
        if not _has_parts(value):
            known.setdefault(name, _plain(value))
        elif id(value) not in seen:
            seen.add(id(value))
            pending += [(f"{name}.{key}", part) for key, part in reversed(_parts_of(value))]
    return known


def _has_parts(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return not all(_is_plain(item) for item in value)
    return not _is_plain(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, _PLAIN)


def _is_setting(value: Any) -> bool:
    """Whether it is a plain value, or a container that holds plain values alone."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_setting, value))
    return _is_plain(value)


def _plain(value: Any) -> Any:
    """A leaf as a checkpoint holds it."""
    if isinstance(value, torch.nn.Parameter):
        if isinstance(value, torch.nn.parameter.UninitializedParameter):
            return "not made yet"
        frozen = "" if value.requires_grad else ", frozen"
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}{frozen}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, set | frozenset):
        return repr(sorted(map(repr, map(_plain, value))))
    if isinstance(value, list | tuple):
        return repr([_plain(item) for item in value])
    if not isinstance(value, np.ndarray | torch.Tensor):
        return str(value)
    array = value.detach().cpu().float().numpy() if isinstance(value, torch.Tensor) else value
    if array.dtype.kind == "f" and array.size and np.isfinite(array).all():
        return sketch(array.reshape(len(array) if array.ndim else 1, -1))
    kind = {"i": np.int64, "u": np.int64, "b": np.int64}.get(array.dtype.kind, str)
    return _digest(f"{array.shape}".encode() + np.ascontiguousarray(array.astype(kind)).tobytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _parts_of(thing: Any) -> list[tuple[str, Any]]:
    """Names and values of an object's settings; values may have parts again."""
    if isinstance(thing, Mapping):
        return [(str(key), value) for key, value in thing.items()]
    if isinstance(thing, list | tuple | set | frozenset):
        return [(str(i), item) for i, item in enumerate(thing)]
    if isinstance(thing, partial):
        return [("function", thing.func), ("arguments", thing.args), ("keywords", thing.keywords)]
    if inspect.isroutine(thing) or isinstance(thing, type):
        return _parts_of_function(thing)
    if isinstance(thing, torch.optim.Optimizer):
        return [("type", type(thing).__qualname__), *_parts_of_optimizer(thing)]
    parts: list[tuple[str, Any]] = [("type", type(thing).__qualname__)]
    attributes = _attributes(thing)
    arguments = set(_arguments(type(thing)))
    for key in arguments:
        for kept in (f"{key}s", f"_{key}"):  # LambdaLR keeps lr_lambda as lr_lambdas
            if key not in attributes and kept in attributes:
                parts.append((key, attributes[kept]))
    recorded = (*attributes.get("_record_these", ()), *attributes.get("_record_these_stats", ()))
    measured = set(recorded) - arguments  # by PML's losses and miners, of the last batch
    own, written = _own_values(type(thing))
    for key, value in {**own, **attributes}.items():
        public = not (key in _NO_SETTINGS or key in measured or key.startswith("_") or key.endswith("_"))
        counts = key in arguments or isinstance(value, float | str) or inspect.isroutine(value)
        fixed = not _is_library(type(thing)) and key not in written and not isinstance(value, os.PathLike)
        if public and (counts or (fixed and _is_setting(value))):
            parts.append((key, value))
    if not _is_library(type(thing)) and not isinstance(thing, torch.nn.Module) and callable(thing):
        parts.append(("call", type(thing).__call__))
    if isinstance(thing, torch.nn.Module):
        if (shown := thing.extra_repr()) and " at 0x" not in shown:
            parts.append(("settings", shown))
        parts += [*thing.named_parameters(recurse=False), *thing.named_children()]
    return parts


def _parts_of_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    for i, group in enumerate(optimizer.param_groups):
        where = f"group {i} " if len(optimizer.param_groups) > 1 else ""
        rate = group.get("initial_lr", group.get("lr"))  # before any schedule
        yield f"{where}lr", float(rate) if isinstance(rate, torch.Tensor) else rate
        yield from ((f"{where}{key}", v) for key, v in group.items() if key not in _NO_GROUP_SETTINGS)


def _parts_of_function(function: Any) -> list[tuple[str, Any]]:
    parts: list[tuple[str, Any]] = [("name", getattr(function, "__name__", type(function).__qualname__))]
    code = getattr(function, "__code__", None)
    if code is not None and not _is_library(function):
        used = _used_by(code)
        parts += [(key, used[key]) for key in ("numbers", "constants", "names")]
        parts += [("defaults", function.__defaults__), ("keyword defaults", function.__kwdefaults__)]
        written = _written_by(code)
        around = {key: function.__globals__.get(key) for key in used["globals"]}
        parts += [
            (key, value)
            for key, value in around.items()
            if getattr(value, "__module__", None) == function.__module__
            or (_is_setting(value) and key not in written)
        ]
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            value = cell.cell_contents
            counts = isinstance(value, _SETTINGS) or inspect.isroutine(value) or is_dataclass(value)
            if counts or (_is_setting(value) and name not in written):
                parts.append((name, value))
    owner = getattr(function, "__self__", None)
    return parts if owner is None or inspect.ismodule(owner) else [*parts, ("of", owner)]


def _used_by(code: types.CodeType) -> dict[str, list[Any]]:
    """What a function's code, and that of functions inside it, reads: constants, attributes, globals."""
    used: dict[str, list[Any]] = {key: [] for key in ("numbers", "constants", "names", "globals")}
    steps = list(dis.get_instructions(code))
    written = {step.argval for step in steps if step.opname == "STORE_GLOBAL"}
    for step in steps:
        value = step.argval
        if isinstance(value, types.CodeType):
            for key, more in _used_by(value).items():
                used[key] += more
        elif step.opcode in dis.hasconst or step.opname == "LOAD_SMALL_INT":
            if type(value) in (int, float):
                used["numbers"].append(value)
            elif isinstance(value, bool | complex | str | bytes | tuple | frozenset):
                value = sorted(value, key=str) if isinstance(value, frozenset) else value
                used["constants"].append(str(value))
        elif step.opcode in dis.hasname:
            is_global = step.opname == "LOAD_GLOBAL" and value not in written
            used["globals" if is_global else "names"].append(value)
    used["names"] += used["globals"]
    return used


def _written_by(code: types.CodeType) -> set[str]:
    """Names of variables and attributes that code, and functions inside it, write to or into."""
    steps, written = list(dis.get_instructions(code)), set()
    starts = {_start(step) for step in steps if step.opname in _WRITING_ITEMS or step.argval in _WRITING}
    for step in steps:
        if isinstance(step.argval, types.CodeType):
            written |= _written_by(step.argval)
        elif step.opname in _STORING or (step.opname in _LOADING and _start(step) in starts):
            written.add(step.argval)
    return written


def _start(step: dis.Instruction) -> tuple[Any, ...]:
    """Where the expression of an instruction begins; before Python 3.11 the same for all."""
    positions = getattr(step, "positions", None)
    return (positions.lineno, positions.col_offset) if positions else ()


def _own_values(kind: type) -> tuple[dict[str, Any], set[str]]:
    """Values of the user's classes themselves, and names that their methods but constructors write to."""
    values: dict[str, Any] = {}
    written: set[str] = set()
    for base in reversed(kind.__mro__):
        if _is_library(base):
            continue
        for name, member in vars(base).items():
            member = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(member, types.FunctionType) and name not in _CONSTRUCTORS:
                written |= _written_by(member.__code__)
            elif not name.startswith("_") and _is_setting(member):
                values[name] = member
    return values, written


def _attributes(thing: Any) -> dict[str, Any]:
    slots = [name for kind in type(thing).__mro__ for name in np.atleast_1d(vars(kind).get("__slots__", []))]
    kept = {str(name): getattr(thing, name) for name in slots if hasattr(thing, name)}
    return {**kept, **getattr(thing, "__dict__", {})}


def _is_library(kind: Any) -> bool:
    return str(kind.__module__).partition(".")[0] in _LIBRARIES


def _arguments(kind: type) -> Iterator[str]:
    """Names of what the constructors of a class and its bases take."""
    for base in kind.__mro__[:-1]:
        if "__init__" in vars(base):
            try:
                yield from list(inspect.signature(vars(base)["__init__"]).parameters)[1:]
            except (TypeError, ValueError):  # of C
                continue
