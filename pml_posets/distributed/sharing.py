"""Work that the ranks share, or that one of them does for all; by `distributed`.

Work is shared only where a script says so (`shared_work`): by default a search or an extraction is done whole
by whoever calls it, so that rank 0 may call it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from .process_group import RankError, all_gather_objects, broadcast_object, is_main, rank, world_size

__all__ = ["from_main", "main_first", "shard", "shared_work", "shares_work", "together"]

Result = TypeVar("Result")

_sharing: ContextVar[bool] = ContextVar("sharing", default=False)


def shard(count: int, number: int | None = None, parts: int | None = None) -> range:
    """The share of a rank in so many things: contiguous, in order of the ranks, of equal size up to 1.

    Args:
        count: how many things, from 0.
        number: whose share, from 0. Default: that of this rank.
        parts: how many shares. Default: the world size.

    Returns:
        The numbers of the things; empty for the last ranks where there are fewer things than ranks.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> [list(shard(5, r, 3)) for r in range(3)]
        [[0, 1], [2, 3], [4]]
    """
    number, parts = rank() if number is None else number, world_size() if parts is None else parts
    if count < 0 or not 0 <= number < parts:
        raise ValueError(f"shard needs count >= 0 and 0 <= number < parts, got {count}, {number}, {parts}")
    least, more = divmod(count, parts)
    start = number * least + min(number, more)
    return range(start, start + least + (number < more))


@contextmanager
def shared_work() -> Iterator[None]:
    """Let `features.extract`, `HOGLDA.transform` and `neighbors.search` inside be shared by the ranks.

    Every rank then does its part of each call, and gets the whole answer. All ranks must make the same calls
    in the same order. With one process nothing changes.

    Example:
        >>> with shared_work():
        ...     shares_work()  # of one process there is nothing to share
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


def from_main(function: Callable[[], Result]) -> Result:
    """Let rank 0 call a function and all have what it returns; nothing in it is shared.

    Args:
        function: called on rank 0 alone; what it returns must be picklable.

    Returns:
        What it returned, on other ranks a copy.

    Raises:
        Exception: on rank 0 what the function raised.
        RankError: on the others then, with its text.

    Example:
        >>> from_main(lambda: 3)
        3
    """
    if world_size() == 1:
        return function()
    result, error = None, None
    if is_main():
        token = _sharing.set(False)
        try:
            result = function()
        except Exception as found:
            error = found
        finally:
            _sharing.reset(token)
    told, copy = broadcast_object((_told(error), result))
    if error is not None:
        raise error
    if told is not None:
        raise RankError(f"rank 0 has failed: {told}")
    return copy  # type: ignore[return-value]


def main_first(function: Callable[[], Result]) -> Result:
    """Let rank 0 call a function, and then the others: what it has written to files they find there.

    Only inside `shared_work`; elsewhere it is called at once. Nothing in it is shared.

    Args:
        function: makes a file, or reads what has been made; called once on every rank.

    Returns:
        What the function returned on this rank.

    Raises:
        Exception: on a rank what the function raised there.
        RankError: on the others then, with its text.

    Example:
        >>> main_first(lambda: 3)
        3
    """
    if not shares_work():
        return function()
    made: list[Result] = []
    from_main(lambda: made.append(function()))
    with together():
        if not is_main():
            token = _sharing.set(False)
            try:
                made.append(function())
            finally:
                _sharing.reset(token)
    return made[0]


@contextmanager
def together() -> Iterator[None]:
    """An error of one rank inside becomes an error of all at the end; nothing inside may be an exchange.

    Raises:
        RankError: on the ranks that went well, if another did not.

    Example:
        >>> with together():
        ...     value = 1
    """
    if world_size() == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as found:
        error = found
    found_by = enumerate(all_gather_objects(_told(error)))
    if error is not None:
        raise error
    for number, told in found_by:
        if told is not None:
            raise RankError(f"rank {number} has failed: {told}")


def _told(error: BaseException | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"
