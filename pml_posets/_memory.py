"""Memory that a y-step will take, told before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ._validation import as_count
from .distributed.process_group import world_size
from .neighbors._reduction import MAX_REDUCED_DIM

__all__ = ["Estimate", "available_bytes", "estimate_y_step", "require_memory"]

_FLOAT = 4
_LIST = 13  # of a neighbour: index, distance, flip
_BLOCKS = 1 << 29  # tiles and gathered rows at most
_SHARE = 64  # of small features: blocks of so many times their bytes at most


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak of a y-step.

    Args:
        features: of the features themselves, with those of mirror images.
        search: of what the neighbour search adds to them.
        grouping: of what groups, posets and the relaxed assignment add.
    """

    features: int
    search: int
    grouping: int

    @property
    def total(self) -> int:
        """Peak: search and grouping come one after the other."""
        blocks = min(_BLOCKS, _SHARE * self.features)
        return self.features + max(self.search, self.grouping) + blocks


def estimate_y_step(
    num_samples: int,
    num_dims: int,
    *,
    num_neighbors: int = 32,
    num_candidates: int = 4,
    max_references: int = 128,
    mirrored: bool = False,
    method: Literal["exact", "approximate"] = "exact",
    backend: Literal["auto", "faiss", "torch"] = "auto",
) -> Estimate:
    """Bytes that search, grouping, posets and relaxed assignment take at their peak on a CPU.

    Args:
        num_samples: N, from 1.
        num_dims: D, from 1.
        num_neighbors: k of the search. Default 32.
        num_candidates, max_references: of `RelaxedAssignment`; its similarities take at most so many floats
            for each sample. Defaults 4 and 128.
        mirrored: whether there are features of mirror images too. Default False.
        method: of the search. Default "exact".
        backend: of the search. An exact one copies nothing; an approximate one holds reduced features, and
            faiss has them twice.

    Returns:
        An upper estimate; `total` is what must be free if the features are still to be made.

    Raises:
        TypeError, ValueError: for a count that is none.

    Source: none, an addition. Differs from the paper: the paper does not speak of memory.

    Example:
        >>> estimate_y_step(113_516, 4096).features
        1859846144
    """
    for name, value in (("num_samples", num_samples), ("num_dims", num_dims), ("k", num_neighbors)):
        as_count(value, name)
    one = _FLOAT * num_samples * num_dims
    lists = _LIST * num_samples * num_neighbors
    copy = 0
    if method == "approximate":
        copy = _FLOAT * num_samples * min(num_dims, MAX_REDUCED_DIM)
        copy *= 2 if backend == "faiss" else 1
    relaxed = _FLOAT * num_samples * num_candidates * (max_references + 12)
    medoids = one // 3  # classes of 3 at least
    return Estimate(one * (2 if mirrored else 1), copy + lists, lists + max(relaxed, medoids))


def available_bytes() -> int | None:
    """Bytes that this process may still take: what the machine has free, or what its container leaves.

    Returns:
        None where neither can be told (other systems than Linux).
    """
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except OSError:
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no such limit is set here
    return max(0, min(found)) if found else None


def require_memory(
    num_samples: int, num_dims: int, *, held: bool = False, available: int | None = None, **options: object
) -> Estimate:
    """Raise before a y-step begins that cannot fit; with what would.

    Args:
        num_samples, num_dims: of the features.
        held: True if the features are in memory already. Default False.
        available: bytes to be had. Default: `available_bytes()`, shared by the ranks of this machine; where
            that cannot be told nothing is raised.
        **options: of `estimate_y_step`.

    Returns:
        The estimate.

    Raises:
        MemoryError: if it takes more than is available; the message says both in bytes, and which option
            would fit.

    Source: none, an addition. Differs from the paper: the paper does not speak of memory.

    Example:
        >>> require_memory(1000, 64, available=10**9).features
        256000
    """
    estimate = estimate_y_step(num_samples, num_dims, **options)  # type: ignore[arg-type]
    limit = available_bytes() if available is None else available
    if limit is None:
        return estimate
    if available is None:
        limit //= world_size()

    def needed(found: Estimate) -> int:
        return found.total - (found.features if held else 0)

    if needed(estimate) <= limit:
        return estimate
    ways: tuple[tuple[str, dict[str, object]], ...] = (
        ("max_references=32", {"max_references": 32}),
        ("method='exact'", {"method": "exact"}),
        ("method='exact' and max_references=32", {"method": "exact", "max_references": 32}),
    )
    hint = ""
    for text, change in ways:
        other = estimate_y_step(num_samples, num_dims, **{**options, **change})  # type: ignore[arg-type]
        if needed(other) <= limit:
            hint = f"{text} would take about {needed(other):,}"
            break
    if not hint:
        per_dim = needed(estimate) / num_dims
        dims, rows = int(limit / per_dim), int(limit / (needed(estimate) / num_samples))
        hint = f"reduce the features to {max(1, dims)} dimensions, or take {max(1, rows)} samples"
    raise MemoryError(
        f"a y-step of {num_samples} x {num_dims} features needs about {needed(estimate):,} bytes, and "
        f"{limit:,} are available: {hint}"
    )
