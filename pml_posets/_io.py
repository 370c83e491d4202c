"""Files written whole or not at all, and folders that can be written to."""

from __future__ import annotations

import errno
import math
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

_DAMAGE = (  # what numpy and zipfile raise at damaged bytes
    ValueError, TypeError, LookupError, EOFError, AttributeError, NotImplementedError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`, and rename it to `path` when the block ends without an error.

    A kill at any time leaves the older file or the whole new one. After an error, which passes through as it
    is, the temporary file is gone. `mode` is "wb" or "w", other options are those of `open`.
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
    """Write arrays to one .npz file by `atomic_write`."""
    with atomic_write(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read what `write_npz` wrote.

    Raises:
        ValueError: if it is damaged or no .npz file.
        OSError: if it is missing or cannot be read, which says nothing of its bytes.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it is a single array")
        with loaded as file:
            _check_sizes(file.zip, os.path.getsize(path))
            return {name: file[name] for name in file.files}
    except (OSError, *_DAMAGE) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a bad offset
            raise
        raise ValueError(f"{path} is damaged or no file of arrays ({error}): make it again") from error


def _check_sizes(archive: zipfile.ZipFile, num_bytes: int) -> None:
    """Refuse arrays that take more memory than the file, of `num_bytes`, has bytes, before they are read."""
    for member in archive.infolist():
        with archive.open(member) as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(file)
        claimed = max(member.file_size, math.prod(shape) * dtype.itemsize)
        if claimed > num_bytes:
            raise ValueError(f"{member.filename} claims {claimed:,} bytes in a file of {num_bytes:,}")


def check_folder(folder: str | os.PathLike[str], num_bytes: int = 0) -> Path:
    """Make an output folder if need be, and see that it can be written to, before hours are spent.

    Raises:
        OSError: if it cannot be made, is no folder, is read-only or has no room for `num_bytes`.
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
