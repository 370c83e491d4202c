"""Files written whole or not at all, and folders that can be written to."""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`, and rename it to `path` when the block ends without an error.

    A kill at any time leaves the older file or the whole new one. After an error, which passes through as it
    is, the temporary file is gone.

    Args:
        path: the file, replaced if it exists.
        mode: "wb" or "w". Default "wb".
        **options: of `open`.

    Yields:
        The open temporary file.

    Raises:
        OSError: if the folder is missing, full or not writable.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to one .npz file by `atomic_write`.

    Raises:
        OSError: if the folder is missing, full or not writable; an older file stays as it was.
    """
    with atomic_write(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read what `write_npz` wrote.

    Raises:
        ValueError: if it is damaged or no .npz file.
        OSError: if it is missing or cannot be read, which says nothing of its bytes.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # of the disk; EINVAL: an offset that cannot be
            raise
        raise ValueError(f"{path} is damaged or no file of arrays ({error}): make it again") from error
    except (
        ValueError,
        EOFError,
        AttributeError,
        TypeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"{path} is damaged or no file of arrays ({error}): make it again") from error


def check_folder(folder: str | os.PathLike[str], num_bytes: int = 0) -> Path:
    """Make an output folder if need be, and see that it can be written to, before hours are spent.

    Args:
        folder: the folder.
        num_bytes: what must fit into it. Default 0.

    Returns:
        The folder.

    Raises:
        OSError: if it cannot be made, is no folder, is read-only or has no room.

    Example:
        >>> import tempfile
        >>> check_folder(tempfile.mkdtemp()).is_dir()
        True
    """
    folder = Path(folder)
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write to the output folder {folder} ({error}): choose another") from error
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(
            f"the output folder {folder} has {free / 1e6:.0f} MB of room, {num_bytes / 1e6:.0f} MB are "
            "needed: make room or choose another"
        )
    return folder
