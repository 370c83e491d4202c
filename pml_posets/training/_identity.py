"""The settings and the data of a run, flat and comparable with those of another run."""

from __future__ import annotations

import dis
import hashlib
import inspect
import os
import types
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
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
    *(bool, int, float, str, range, os.PathLike),
    *(np.generic, np.ndarray, torch.Tensor, torch.dtype, torch.Size),
)
_SAMPLES = 32  # of the data that are looked at
_RUN_STATE = (Posets, Dataset, Sampler, torch.device, torch.Generator, torch.nn.Parameter)
_NO_SETTINGS = {"training", "last_epoch", "verbose", "optimizer"}
_LIBRARIES = ("pml_posets", "pytorch_metric_learning", "torch", "torchvision", "numpy", "sklearn")
_NO_GROUP_SETTINGS = {"params", "lr", "initial_lr", "capturable", "foreach", "fused", "differentiable"}


def describe_data(dataset: Any) -> dict[str, Any]:
    """What is known of a dataset: how many samples, names of files, and some of its images.

    Up to 32 samples are read, each under a fixed seed, so that their augmentation counts too; where that
    changes from one reading to the next, the images are left out. Settings of a `transform` count as well.
    """
    inner = dataset.dataset if isinstance(dataset, IndexedDataset) else dataset
    known: dict[str, Any] = {"samples": len(inner)}
    for name in ("paths", "samples", "imgs"):
        files = getattr(inner, name, None)
        if isinstance(files, list | tuple) and files:
            paths = [item[0] if isinstance(item, tuple) else item for item in files]
            if all(isinstance(path, str | os.PathLike) for path in paths):
                known["file names"] = _digest("\n".join(os.path.basename(path) for path in paths).encode())
                break
    layer = inner
    while layer is not None:
        if (transform := getattr(layer, "transform", None)) is not None:
            known |= {f"transform {key}": value for key, value in describe(transform).items()}
        layer = getattr(layer, "dataset", None)
    indices = np.unique(np.linspace(0, len(inner) - 1, min(_SAMPLES, len(inner))).astype(int)).tolist()
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


def describe(thing: Any, sizes: bool = True) -> dict[str, Any]:
    """The settings of an object and of all that it is made of, flat: {"distance.p": 2, ...}.

    Settings are the constructor's arguments that the object keeps under their names (as scikit-learn, torch
    and PML do), all its public attributes that are floats or strings, what `extra_repr` shows of a module,
    the parameter groups of an optimizer, the shapes of weights and which are frozen. Functions count by the
    constants and names in their code, and by plain values and functions that they read from around them.
    Without `sizes`, for what is made for a number of classes, whole numbers and shapes are left out.
    """
    known: dict[str, Any] = {}
    pending = [*reversed(_parts_of(thing, sizes))] if _has_parts(thing) else [("value", thing)]
    seen = {id(thing)}
    while pending:
        name, value = pending.pop()
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, _RUN_STATE) and not isinstance(value, torch.nn.Parameter):
            continue
        if not _has_parts(value):
            if sizes or isinstance(value, float | str):
                known.setdefault(name, _plain(value))
        elif id(value) not in seen:
            seen.add(id(value))
            pending += [(f"{name}.{key}", part) for key, part in reversed(_parts_of(value, sizes))]
    return known


def _has_parts(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return not all(_is_plain(item) for item in value)
    return not _is_plain(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, _PLAIN)


def _is_fixed(value: Any) -> bool:
    """Whether a value that a function reads is a setting; a list or dict may be what it writes to."""
    return _is_plain(value) or isinstance(value, tuple | frozenset)


def _plain(value: Any) -> Any:
    """A leaf as a checkpoint holds it."""
    if isinstance(value, torch.nn.Parameter):
        if isinstance(value, torch.nn.parameter.UninitializedParameter):
            return "not made yet"
        frozen = "" if value.requires_grad else ", frozen"
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}{frozen}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set | frozenset):
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


def _parts_of(thing: Any, sizes: bool) -> list[tuple[str, Any]]:
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
    attributes = getattr(thing, "__dict__", {})
    arguments = set(_arguments(type(thing)))
    for key in arguments:
        for kept in (f"{key}s", f"_{key}"):  # LambdaLR keeps lr_lambda as lr_lambdas
            if key not in attributes and kept in attributes:
                parts.append((key, attributes[kept]))
    recorded = (*attributes.get("_record_these", ()), *attributes.get("_record_these_stats", ()))
    measured = set(recorded) - arguments  # by PML's losses and miners, of the last batch
    for key, value in attributes.items():
        public = not (key in _NO_SETTINGS or key in measured or key.startswith("_") or key.endswith("_"))
        if public and (key in arguments or isinstance(value, float | str) or inspect.isroutine(value)):
            parts.append((key, value))
    if isinstance(thing, torch.nn.Module):
        if sizes and (shown := thing.extra_repr()) and " at 0x" not in shown:
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
    if code is not None and str(function.__module__).partition(".")[0] not in _LIBRARIES:
        used = _used_by(code)
        parts += [(key, used[key]) for key in ("numbers", "constants", "names")]
        parts += [("defaults", function.__defaults__), ("keyword defaults", function.__kwdefaults__)]
        module = {key: function.__globals__.get(key) for key in used["globals"]}
        parts += [
            (key, value)
            for key, value in module.items()
            if _is_fixed(value) or getattr(value, "__module__", None) == function.__module__
        ]
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            value = cell.cell_contents
            if _is_fixed(value) or inspect.isroutine(value) or is_dataclass(value):
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
                used["constants"].append(
                    str(sorted(value, key=str) if isinstance(value, frozenset) else value)
                )
        elif step.opcode in dis.hasname:
            used["globals" if step.opname == "LOAD_GLOBAL" and value not in written else "names"].append(
                value
            )
    used["names"] += used["globals"]
    return used


def _arguments(kind: type) -> Iterator[str]:
    """Names of what the constructors of a class and its bases take."""
    for base in kind.__mro__[:-1]:
        if "__init__" in vars(base):
            try:
                yield from list(inspect.signature(vars(base)["__init__"]).parameters)[1:]
            except (TypeError, ValueError):  # of C
                continue
