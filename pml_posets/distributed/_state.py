"""The process group of this process, and why it has ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

_REASON = "pml_posets/reason"  # in the store that all ranks read: why one of them left
left: list[tuple[int, int]] = []  # (rank, world size) of this process after it has left a failed group


class RankError(RuntimeError):
    """Another rank has failed, died or not answered in time; the message says why if that is known."""


def rank() -> int:
    """Number of this process, from 0; 0 without a process group.

    Example:
        >>> rank(), world_size(), is_main()
        (0, 1, True)
    """
    if initialized():
        return dist.get_rank()
    return left[-1][0] if left else 0


def world_size() -> int:
    """How many processes there are; 1 without a process group."""
    if initialized():
        return dist.get_world_size()
    return left[-1][1] if left else 1


def is_main() -> bool:
    """True for rank 0, which alone writes files and shows progress."""
    return rank() == 0


def initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def collective() -> Iterator[None]:
    if not initialized():
        raise RankError("the process group has ended with an error before: start the processes again")
    try:
        yield
    except RuntimeError as error:
        reason = _reason()
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        text = "another rank has died or did not answer in time" if reason is None else reason
        raise RankError(f"rank {rank()} of {world_size()} goes no further: {text} ({first})") from error


def _reason() -> str | None:
    """What a failed rank has left behind, if the store can still be asked."""
    with suppress(Exception):
        store = dist.distributed_c10d._get_default_store()
        if store.check([_REASON]):
            return store.get(_REASON).decode()
    return None


def leave(error: BaseException) -> None:
    """Tell the others why, end the group, and remember which rank this was."""
    if not initialized():  # an inner block has left already
        return
    here = rank(), world_size()
    if not isinstance(error, RankError):
        with suppress(Exception):
            dist.distributed_c10d._get_default_store().set(
                _REASON, f"rank {here[0]} has failed: {type(error).__name__}: {error}"
            )
    abort = getattr(dist.distributed_c10d, "_abort_process_group", dist.destroy_process_group)
    with suppress(Exception):
        abort()
    if initialized():
        with suppress(Exception):
            dist.destroy_process_group()
    left.append(here)
