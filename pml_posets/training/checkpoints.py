"""Files that hold a whole run: written whole or not at all, checked when they are read."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .._io import atomic_write

__all__ = ["check_settings", "load_checkpoint", "save_checkpoint"]

_FORMAT = 1


def save_checkpoint(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a checkpoint beside its place and move it there: a kill leaves the old one or the new one.

    Args:
        path: the file, replaced if it is there.
        content: tensors, numbers, strings, and lists and dicts of them.

    Raises:
        OSError: if it cannot be written; the old file is then as it was.
    """
    path = Path(path)
    try:
        with atomic_write(path) as file:
            torch.save({"format": _FORMAT, **content}, file)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        raise OSError(f"cannot write the checkpoint {path} ({error}); an older one is unchanged") from error


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint to the CPU, every byte checked. Nothing in the file is run as code.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, no checkpoint, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:
                raise ValueError(f"the checksum of its part {bad} is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"its format is not {_FORMAT}, the one this version reads")
    except Exception as error:  # torch and zipfile raise anything on damage
        raise ValueError(
            f"the checkpoint {path} is damaged or none ({error}): remove it to start anew, or restore a copy"
        ) from error
    return content


def check_settings(found: Mapping[str, Any], expected: Mapping[str, Any], path: Any) -> None:
    """See that a checkpoint belongs to this run.

    Args:
        found: settings in the checkpoint, flat.
        expected: those of this run.
        path: for the message.

    Raises:
        ValueError: if they differ; the message says where.

    Example:
        >>> check_settings({"seed": 0, "size": 5}, {"seed": 1, "size": 5}, "a.pt")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: the checkpoint a.pt belongs to another run (there seed=0, here 1): ...
    """
    names = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
    if names:
        there = "; ".join(f"there {name}={found.get(name)!r}, here {expected.get(name)!r}" for name in names)
        raise ValueError(
            f"the checkpoint {path} belongs to another run ({there}): use its settings, or another folder"
        )
