"""Files that may be damaged: errors name the file, and its size bounds what is read of it."""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from pml_posets.data.cache import digest

_ROOM = 1 << 24  # bytes to which any file may unpack
_RATIO = 30  # times its size to which a larger one may: packed drawings take 11
_COMPRESSED = 15  # MATLAB's type of a compressed element
_LOAD = """import json, pickle, sys
from scipy.io import loadmat
sys.stdout.buffer.write(pickle.dumps(loadmat(sys.argv[1], **json.loads(sys.argv[2]))))"""


def most_bytes(path: Path) -> int:
    """How many bytes a file may unpack to."""
    return _ROOM + _RATIO * path.stat().st_size


def read_arrays(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Arrays of an .npz file.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged, lacks a needed array, or claims more than its size allows.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no {path}: give the folder of {path.name}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            chosen = {name: members[name] for name in (*needed, *optional) if name in members}
            if sum(info.file_size for info in chosen.values()) > most_bytes(path):
                raise ValueError("it unpacks to more than a file of its size can hold")
            arrays = {name: _array(archive, info) for name, info in chosen.items()}
    except Exception as error:  # zipfile, zlib and numpy raise anything on damage
        raise ValueError(f"{path} is damaged or no .npz file ({error}): copy it again") from error
    if missing := [name for name in needed if name not in arrays]:
        raise ValueError(f"{path} lacks {', '.join(missing)}, it has {', '.join(members) or 'nothing'}")
    return arrays


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
    if math.prod(shape) * dtype.itemsize > info.file_size:
        raise ValueError(f"{info.filename} claims the shape {shape} in {info.file_size} bytes")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def read_matlab(path: Path, **options: Any) -> Mapping[str, Any]:
    """The variables of a .mat file, by scipy's `loadmat` with these options.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged, or unpacks to more than its size allows.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no annotation file {path}: give {path.name} as it was released")
    try:
        with open(path, "rb") as file:
            _check_unpacked(file, most_bytes(path))
        return _load_matlab(path, options)
    except Exception as error:  # scipy raises anything on damage
        raise ValueError(f"{path} is damaged or no MATLAB file ({error}): download it again") from error


def _load_matlab(path: Path, options: Mapping[str, Any]) -> Any:
    """The content by scipy, in another process: damaged files can end it."""
    command = [sys.executable, "-c", _LOAD, str(path), json.dumps(options)]
    reader = subprocess.run(command, capture_output=True)
    if reader.returncode:
        said = reader.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(said[-1] if said else f"its reader ended with status {reader.returncode}")
    return pickle.loads(reader.stdout)


def _check_unpacked(file: IO[bytes], most: int) -> None:
    """Unpack the compressed elements of a MATLAB file once, without keeping them, and count their bytes."""
    order = {b"IM": "<", b"MI": ">"}.get(file.read(128)[126:])
    while order and len(tag := file.read(8)) == 8:
        kind, size = struct.unpack(f"{order}II", tag)
        if kind != _COMPRESSED:
            file.seek(size, os.SEEK_CUR)
            continue
        unpacker = zlib.decompressobj()
        while size and (packed := file.read(min(size, 1 << 14))):
            size -= len(packed)
            most -= len(unpacker.decompress(packed))
            if most < 0:
                raise ValueError("it unpacks to more than a file of its size can hold")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, those at its end without text left out.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it cannot be read as UTF-8.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no {path}: give the unpacked folder of the data, as published")
    try:
        return path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): unpack it again") from error


def files_id(paths: Sequence[Path]) -> str:
    """A digest that changes with the files: their names, sizes, times of change."""
    states = [path.stat() for path in map(Path, dict.fromkeys(paths))]
    return str(digest([str(path) for path in paths], [[s.st_size, s.st_mtime_ns] for s in states]))


def left_out(excluded: Mapping[str, Sequence[str]], most: int = 5) -> list[str]:
    """One line for each reason: how many it leaves out, and the first names."""
    lines = []
    for reason, names in excluded.items():
        shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
        lines.append(f"  left out, {reason}: {len(names)} ({shown})")
    return lines
