"""Memory: whether a y-step is likely to fit into it, and what becomes of what is freed."""

from __future__ import annotations

import ctypes
import warnings
from pathlib import Path

_CGROUPS = (  # version 2, then 1: folder, limit, use
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
_MEMINFO = Path("/proc/meminfo")
_LIST = 13  # bytes of a neighbor: index, distance, flip
_REFERENCES = 4 * (128 + 12) * 4  # bytes a sample in the relaxed assignment
_TRIM, _OWN_PAGES = -1, -3  # of glibc's mallopt: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


def keep_freed_memory() -> None:
    """Let this process use the memory that it frees again, instead of giving it back to the system.

    For a program, not for a library: it changes the whole process. A network on a CPU frees its intermediate
    maps after each batch, and glibc gives maps from 32 MiB on back at once. The system then hands them out
    again in pages of 4 KiB, which can take longer than the convolutions. Without glibc nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; Windows
        return
    mallopt(_OWN_PAGES, 2**29) or mallopt(_OWN_PAGES, 2**25)  # older versions allow no more
    mallopt(_TRIM, 2**31 - 1)


def list_bytes(num_samples: int, num_neighbors: int = 32) -> int:
    """Bytes of the lists of neighbors, which every y-step takes."""
    return _LIST * num_samples * num_neighbors


def y_step_bytes(num_samples: int, num_dims: int, num_neighbors: int = 32) -> int:
    """Bytes that a y-step takes at most beside features of this size."""
    medoids = 4 * num_samples * num_dims // 3  # classes of 3 at least
    return list_bytes(num_samples, num_neighbors) + max(medoids, _REFERENCES * num_samples)


def available_bytes() -> int | None:
    """Bytes that this process may still take, pages of files counted as free; None if it is not known."""
    limits = [limit - used for limit, used in _limits()]
    return max(0, min(limits)) if limits else None


def warn_if_short(needed: int, what: str, certain: int = 0) -> None:
    """Warn of a step that seems to need more bytes than are free for each rank of this machine.

    A MemoryError if it takes `certain` bytes in any case, more than the machine or its container has in all.
    """
    from .distributed.process_group import world_size  # which imports torch

    limits = _limits()
    if not limits:
        return
    total = min(limit for limit, _ in limits)
    advice = "give shorter features (pml_posets.features.reduction) or fewer samples"
    if certain > total:
        raise MemoryError(
            f"{what} takes {certain:,} bytes at least, and this machine has {total:,} in all: {advice}"
        )
    left = max(0, min(limit - used for limit, used in limits)) // world_size()
    if needed > left:
        warnings.warn(
            f"{what} needs about {needed:,} bytes, and {left:,} seem to be available: if it runs out of "
            f"memory, {advice}",
            ResourceWarning,
            stacklevel=3,
        )


def _limits() -> list[tuple[int, int]]:
    """(limit, bytes in use that cannot be given up) of the machine and of its container, as far as known."""
    limits = []
    try:
        found = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        total, free = (1024 * int(found[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
        limits.append((total, total - free))
    except (OSError, ValueError, KeyError):
        pass
    for folder, limit_file, used_file in _CGROUPS:
        try:
            limit = int((folder / limit_file).read_text())  # "max": no limit
            used = int((folder / used_file).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        kinds = ("total_inactive_file", "total_active_file", "inactive_file", "active_file")
        values = [int(stat[kind]) for kind in kinds if kind in stat][:2]
        limits.append((limit, max(0, used - sum(values))))
        break
    return limits
