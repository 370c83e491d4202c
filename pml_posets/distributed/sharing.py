"""Work that the ranks share, or that one of them does for all.

Work is shared only where a script says so (`shared_work`): by default the process that calls a
search or an extraction does all of it, so that rank 0 may call it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from .process_group import (
    RankError,
    all_gather_objects,
    all_gather_rows,
    broadcast_object,
    is_main,
    rank,
    world_size,
)

__all__ = ["from_main", "main_first", "shard", "share_errors", "shared_work", "shares_work"]

Result = TypeVar("Result")

_sharing: ContextVar[bool] = ContextVar("sharing", default=False)


def shard(count: int, number: int | None = None, num_shares: int | None = None) -> range:
    """The share of a rank in `count` items: contiguous, in order of the ranks, of equal size up to 1.

    Args:
        count: number of items, from 0.
        number: rank whose share is asked for, from 0. Default: this rank.
        num_shares: Default: the world size.

    Returns:
        The indices of the items; empty for the last ranks where there are fewer items than ranks.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> [list(shard(5, r, 3)) for r in range(3)]
        [[0, 1], [2, 3], [4]]
    """
    number = rank() if number is None else number
    num_shares = world_size() if num_shares is None else num_shares
    if count < 0 or not 0 <= number < num_shares:
        found = f"{count}, {number}, {num_shares}"
        raise ValueError(f"shard needs count >= 0 and 0 <= number < num_shares, got {found}")
    least, more = divmod(count, num_shares)
    start = number * least + min(number, more)
    return range(start, start + least + (number < more))


@contextmanager
def shared_work() -> Iterator[None]:
    """Let `features.extract`, `HOGLDA.transform` and `neighbors.search` inside be shared by the ranks.

    Every rank then does its part of each call, and gets the whole answer. All ranks must make the same calls
    in the same order. With one process nothing changes.

    Example:
        >>> with shared_work():
        ...     shares_work()  # one process has nothing to share
        False
    """
    token = _sharing.set(True)
    try:
        yield
    finally:
        _sharing.reset(token)


def shares_work() -> bool:
    """True inside `shared_work`, where there are several ranks."""
    return _sharing.get() and world_size() > 1


def leads_work() -> bool:
    """True for rank 0, which alone shows progress and writes files, and where ranks do not share work."""
    return is_main() or not shares_work()


def gather_shares(count: int, size: int, make: Callable[[range], list[Any]]) -> list[Any]:
    """The arrays (count, ...) that `make` gives for a range of items, put together from those of all ranks.

    A rank makes whole batches of `size` items, so that the numbers are those of one process.
    """
    if not shares_work():
        return make(range(count))
    own = shard(-(-count // size))
    with share_errors():
        parts = make(range(count)[own.start * size : own.stop * size])
    return [all_gather_rows(part) for part in parts]


def from_main(function: Callable[[], Result]) -> Result:
    """Let rank 0 call a function and all have what it returns (picklable); nothing in it is shared.

    Raises:
        Exception: on rank 0 what the function raised.
        RankError: on the others then, with its text.

    Example:
        >>> from_main(lambda: 3)
        3
    """
    results: list[Any] = [None]
    with share_errors():
        if is_main():
            results = [_alone(function)]
    return broadcast_object(results[0])


def main_first(function: Callable[[], Result]) -> Result:
    """Let rank 0 call a function, and then the others, which find the files that it has written.

    Only inside `shared_work`; elsewhere it is called at once. Nothing in it is shared. Each rank returns and
    raises what the function did on it; the others then raise a `RankError` with its text.

    Example:
        >>> main_first(lambda: 3)
        3
    """
    if not shares_work():
        return function()
    results: list[Result] = []
    for turn in (True, False):
        with share_errors():
            if is_main() == turn:
                results.append(_alone(function))
    return results[0]


@contextmanager
def share_errors() -> Iterator[None]:
    """An error of one rank inside becomes a `RankError` of all at the end; no exchange may be inside."""
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    texts = all_gather_objects(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for number, text in enumerate(texts):
        if text is not None:
            raise RankError(f"rank {number} has failed: {text}")


def _alone(function: Callable[[], Result]) -> Result:
    token = _sharing.set(False)
    try:
        return function()
    finally:
        _sharing.reset(token)
