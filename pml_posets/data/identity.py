"""What tells one set of images from another, for caches: all that their pixels depend on, or a refusal."""

from __future__ import annotations

import dis
import functools
import hashlib
import json
import os
import sys
import types
from enum import Enum
from typing import Any

import numpy as np
import torch

from .._validation import kind_of
from . import images as pixels
from .datasets import WithMirrorImages
from .images import UnreadableImageError

__all__ = ["data_identity", "digest", "weights_digest"]

_LIBRARIES = ("builtins", "numpy", "torch", "torchvision", "PIL", "pml_posets")  # known by name and values
_HIDDEN = {"globals", "eval", "exec", "environ", "getenv", "import_module", "__import__"}
_FILES = ("paths", "samples", "imgs")
_BESIDE_FILES = {*_FILES, "root", "classes", "class_to_idx", "targets", "target_transform", "unreadable"}


class _UnknownError(TypeError):
    """A part whose values cannot be read; the message says which."""


def data_identity(images: Any, data_id: str | None = None) -> tuple[str, str]:
    """What tells one set of images from another, and one state of a set from another.

    A transform or a dataset counts by the values of all its parts, and by its class. Where a part is code of
    the user's, such as a function, nothing says when it changes: the caller gives a `data_id`.

    Args:
        images: paths, arrays, tensors or PIL images (or tuples and lists that start with one); or a dataset
            with a `data_id` of its own, as `ImageStore` has; or one with a list of files in `paths`,
            `samples` or `imgs`, as `ImageList` and torchvision's `ImageFolder`; or a Subset or
            `WithMirrorImages` of these. Files
            count by their size and times of change, images in memory by their contents.
        data_id: stands for the data instead; the caller changes it when the data change.

    Returns:
        (name, state), two digests.

    Raises:
        TypeError: for anything else: give data_id.
        UnreadableImageError: if a file is missing.

    Example:
        >>> data_identity(np.zeros((1, 2, 2))) == data_identity(np.ones((1, 2, 2)))
        False
    """
    own = data_id if data_id is not None else getattr(images, "data_id", None)
    if isinstance(own, str):
        return own, digest(pixels.VERSION, own, len(images))
    if isinstance(images, torch.utils.data.Subset):
        name, state = data_identity(images.dataset)
        chosen = digest([int(index) for index in images.indices])
        return digest(name, chosen), digest(state, chosen)
    if isinstance(images, WithMirrorImages):
        name, state = data_identity(images.dataset)
        return digest(name, "mirrored"), digest(state, "mirrored")
    try:
        files = files_of(images)
        if files is not None:
            if not isinstance(files, list | tuple | np.ndarray):
                raise _UnknownError(f"its files are {kind_of(files)}, no list")
            if not hasattr(images, "__dict__"):
                raise _UnknownError("it has no attributes to read")
            rest = {key: value for key, value in vars(images).items() if key not in _BESIDE_FILES}
            how = digest(_class_values(type(images)), _values(rest))
        elif isinstance(images, np.ndarray | torch.Tensor | list | tuple):
            files, how = images, ""
        else:
            raise _UnknownError("it has no list of files")
        names, states = zip(*map(_item_identity, files), strict=True) if len(files) else ((), ())
    except _UnknownError as error:
        raise TypeError(
            f"cannot tell when {kind_of(images)} changes: give data_id, a string that changes "
            f"with the data ({error})"
        ) from None
    return digest(pixels.VERSION, len(files), how, names), digest(how, states)


def files_of(dataset: Any) -> Any:
    """The list of a dataset's files, as `ImageList` and torchvision's `ImageFolder` have one, or None."""
    return next((getattr(dataset, key) for key in _FILES if hasattr(dataset, key)), None)


def digest(*values: Any) -> str:
    """A SHA-256 hex digest of plain values (numbers, strings, lists, dicts) and arrays."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            return [str(value.dtype), list(value.shape), content]
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"cannot digest {kind_of(value)}")

    return hashlib.sha256(json.dumps(values, default=plain, sort_keys=True).encode()).hexdigest()


def weights_digest(module: torch.nn.Module | None) -> str | None:
    """A SHA-256 hex digest of a network's kinds of layers, weights, names and shapes; None for None."""
    if module is None:
        return None
    state = hashlib.sha256()
    for name, part in module.named_modules():
        state.update(f"{name} {type(part).__qualname__}".encode())
    for name, value in module.state_dict().items():
        state.update(f"{name} {tuple(value.shape)}".encode())
        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _item_identity(item: Any) -> tuple[str | None, Any]:
    """(path, size and times) of a file, (None, digest of the contents) of an image in memory."""
    item = pixels.image_of(item)
    if isinstance(item, str | os.PathLike):
        path = os.path.abspath(os.fspath(item))
        try:
            status = os.stat(path)
        except OSError as error:
            raise UnreadableImageError(f"cannot read the image {path}: {error}") from error
        return path, (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if hasattr(item, "getbands"):
        try:
            item = np.asarray(pixels.as_image(item))
        except (OSError, SyntaxError, EOFError) as error:  # what decoders raise
            raise UnreadableImageError(f"cannot read an image in memory: {error}") from error
    if isinstance(item, torch.Tensor):
        item = pixels.to_numpy(item)
    array = item if isinstance(item, np.ndarray) else np.empty(0, object)
    if array.dtype.kind not in "buif":
        raise _UnknownError(f"it holds {kind_of(item)}")
    return None, digest(array)


def _values(value: Any) -> Any:
    """All values of a thing in a form that `digest` takes, or _UnknownError."""
    if isinstance(value, Enum):
        return [type(value).__qualname__, value.value]
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        raise _UnknownError("an array of objects has no fixed values")
    if value is None or isinstance(value, bool | int | float | str | np.ndarray | np.generic):
        return value
    if isinstance(value, types.ModuleType) and _is_library(value):
        return value.__name__
    if isinstance(value, bytes | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, torch.Tensor):
        return list(_item_identity(value))
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(_values, value)]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_values(one), sort_keys=True) for one in value)
    if isinstance(value, dict):
        return [[_values(key), _values(one)] for key, one in value.items()]
    if isinstance(value, functools.partial):
        return ["partial", _values(value.func), _values(value.args), _values(value.keywords)]
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        bound_to = getattr(value, "__self__", None)
        is_bound = bound_to is not None and not isinstance(bound_to, types.ModuleType | type)
        if _is_library(value) and "<" not in value.__qualname__ and not is_bound:
            return f"{value.__module__}.{value.__qualname__}"
        raise _UnknownError(f"{value.__qualname__} is code, whose values are not known")
    is_python = isinstance(type(value).__init__, types.FunctionType)  # no values out of sight, as C code has
    if _is_library(type(value)) and is_python and hasattr(value, "__dict__"):
        return [type(value).__module__, type(value).__qualname__, _values(vars(value))]
    raise _UnknownError(f"the values of {kind_of(value)} are not known")


def _is_library(thing: Any) -> bool:
    """Whether a class, function or module is known by its name."""
    if isinstance(thing, types.ModuleType):
        return _is_known(thing.__name__)
    return str(thing.__module__).partition(".")[0] in _LIBRARIES


def _is_known(module: str) -> bool:
    top = module.partition(".")[0]
    return top in _LIBRARIES or top in sys.stdlib_module_names


def _class_values(kind: type) -> list[Any]:
    """Name and code of a dataset's class and of those that it inherits from, down to the libraries'."""
    found: list[Any] = []
    for base in kind.__mro__:
        found.append(f"{base.__module__}.{base.__qualname__}")
        if _is_library(base) or base.__module__ in ("typing", "abc"):
            continue
        for name, member in sorted(vars(base).items()):
            member = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(member, types.FunctionType):
                found.append([name, _code(member)])
            elif not name.startswith(("__", "_abc_")):
                found.append([name, _values(member)])
    return found


def _code(function: types.FunctionType) -> list[Any]:
    """What a method computes: its code, defaults, and the globals and enclosing values it reads."""
    instructions, names = _instructions(function.__code__)
    if hidden := _HIDDEN.intersection(names):
        raise _UnknownError(f"{function.__qualname__} reads values by {min(hidden)}, which are not known")
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    enclosing = [cell.cell_contents for name, cell in cells if name != "__class__"]  # that is `super()`
    read = {name: function.__globals__[name] for name in names if name in function.__globals__}
    defaults = [function.__defaults__, function.__kwdefaults__]
    return [instructions, _values(read), _values(enclosing), _values(defaults)]


def _instructions(code: types.CodeType) -> tuple[list[Any], list[str]]:
    """Bytecode and constants, and the names that it reads, of the functions inside too."""
    found: list[Any] = [code.co_code.hex(), list(code.co_names)]
    steps = list(dis.get_instructions(code))
    names = [step.argval for step in steps if step.opname == "LOAD_GLOBAL"]
    names += _HIDDEN.intersection(code.co_names)
    for step in steps:
        if step.opname == "IMPORT_NAME" and not _is_known(step.argval):
            raise _UnknownError(f"{code.co_name} imports {step.argval}, whose values are not known")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner, more = _instructions(constant)
            found.append(inner)
            names += more
        else:
            found.append(repr(constant))
    return found, names
