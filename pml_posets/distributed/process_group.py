"""Several processes, one a GPU or a share of the cores: the one place that knows torch.distributed.

Every process (a rank) runs the same script and calls these functions in the same order. Without a process
group, or with one process in it, each of them is the identity or does nothing, so that callers need not ask.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

__all__ = [
    "RankError",
    "abort_on_error",
    "all_gather_equal",
    "all_gather_objects",
    "all_gather_rows",
    "all_reduce_sum",
    "barrier",
    "broadcast_object",
    "broadcast_tensors",
    "from_environment",
    "is_main",
    "rank",
    "world_size",
]

Rows = TypeVar("Rows", np.ndarray, torch.Tensor)
Result = TypeVar("Result")

_PIECE = 2**30  # bytes that a rank sends at once
_PATIENCE = 30.0  # seconds that a rank waits for the others at the end
_REASON = "pml_posets/reason"  # in the store that all ranks read: why one of them left
_left: list[tuple[int, int]] = []  # (rank, world size) of this process after it has left a failed group


class RankError(RuntimeError):
    """Another rank has failed, died or not answered in time; the message says why if that is known."""


def rank() -> int:
    """Number of this process, from 0; 0 without a process group.

    Example:
        >>> rank(), world_size(), is_main()
        (0, 1, True)
    """
    return dist.get_rank() if _initialized() else _left[-1][0] if _left else 0


def world_size() -> int:
    """How many processes there are; 1 without a process group."""
    return dist.get_world_size() if _initialized() else _left[-1][1] if _left else 1


def is_main() -> bool:
    """True for rank 0, which alone writes files and shows progress."""
    return rank() == 0


# --- Exchange


def barrier() -> None:
    """Wait until every rank is here, or a `RankError`."""
    all_gather_objects(None)


def broadcast_object(value: Result) -> Result:
    """What rank 0 gives, on every rank (on rank 0 itself, elsewhere a copy).

    Args:
        value: anything that can be pickled; only that of rank 0 matters.

    Raises:
        RankError: if another rank has failed, here and in all exchanges below.

    Example:
        >>> broadcast_object({"epoch": 3})
        {'epoch': 3}
    """
    if world_size() == 1:
        return value
    box: list[Any] = [value if is_main() else None]
    with _collective():
        dist.broadcast_object_list(box, src=0)
    return value if is_main() else box[0]


def all_gather_objects(value: Result) -> list[Result]:
    """What the ranks give, small things, in their order, on every rank."""
    if world_size() == 1:
        return [value]
    box: list[Any] = [None] * world_size()
    with _collective():
        dist.all_gather_object(box, value)
    return box


def all_gather_rows(block: Rows) -> Rows:
    """The blocks of rows of all ranks, one after another, on every rank, bit for bit.

    Args:
        block: (n_r, ...) array or tensor of any dtype of numbers; n_r may differ from rank to rank, and be 0
            (then dtype and width do not matter). Tensors keep their device.

    Returns:
        (sum of n_r, ...), without gradients. With one process the block itself.

    Raises:
        TypeError: if the block is neither.
        ValueError: on all ranks, if the blocks do not agree in width and dtype.

    Example:
        >>> all_gather_rows(np.arange(3))
        array([0, 1, 2])
    """
    if not isinstance(block, np.ndarray | torch.Tensor) or block.ndim == 0:
        raise TypeError(f"a block of rows must be an array or a tensor (n, ...), got {type(block).__name__}")
    if world_size() == 1:
        return block
    own: Any = block.detach().cpu() if isinstance(block, torch.Tensor) else block
    split: Any = torch.tensor_split if isinstance(block, torch.Tensor) else np.array_split
    turns = max(all_gather_objects(1 + own.nbytes // _PIECE))
    sent = [all_gather_objects(piece) for piece in split(own, turns)]
    pieces = [turn[r] for r in range(world_size()) for turn in sent if len(turn[r])]
    kinds = {f"{type(p).__name__} of rows {tuple(p.shape[1:])} {p.dtype}" for p in pieces}
    if len(kinds) > 1:
        raise ValueError(f"blocks of rows must agree in width and dtype, got {' and '.join(sorted(kinds))}")
    if not pieces:
        return block
    if isinstance(pieces[0], torch.Tensor):
        pieces = [piece.to(getattr(block, "device", "cpu")) for piece in pieces]
    whole: Any = torch.cat(pieces) if isinstance(pieces[0], torch.Tensor) else np.concatenate(pieces)
    return whole


def all_gather_equal(x: torch.Tensor) -> torch.Tensor:
    """As `all_gather_rows`, of tensors (n, ...) of one shape on all ranks, in a single exchange.

    Returns:
        (n x world size, ...), without gradients; with one process x itself.
    """
    if world_size() == 1:
        return x
    gathered = torch.empty((world_size(), *x.shape), dtype=x.dtype, device=_carrier(x))
    sent, *received = (part.contiguous().reshape(-1).view(torch.uint8) for part in (x.detach(), *gathered))
    with _collective():
        dist.all_gather(received, sent.to(gathered.device))
    return gathered.to(x.device).flatten(0, 1)


def all_reduce_sum(x: torch.Tensor) -> torch.Tensor:
    """The sum over the ranks of tensors of one shape, without gradients; the same bits on all of them."""
    if world_size() == 1:
        return x
    summed = x.detach().clone().to(_carrier(x))
    with _collective():
        dist.all_reduce(summed)
    return summed.to(x.device)


def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Give tensors, alike on all ranks, the values that they have on rank 0, in place, bit for bit."""
    if world_size() == 1:
        return
    with _collective(), torch.no_grad():
        for tensor in tensors:
            sent = tensor.detach().contiguous().to(_carrier(tensor))
            dist.broadcast(sent, src=0)
            if not is_main():
                tensor.copy_(sent)


# --- Start and end


@contextmanager
def abort_on_error() -> Iterator[None]:
    """An error of one rank inside ends the process group, so that no other waits for this one in vain.

    The others find out in their next exchange, and raise `RankError` with the reason. The group is then lost
    on all ranks: start the processes again. A rank that is killed closes its connections, which gloo notices
    at once; on GPUs torchrun ends the others.
    """
    try:
        yield
    except BaseException as error:
        if world_size() > 1:
            _leave(error)
        raise


@contextmanager
def from_environment(
    device: str | torch.device | None = None, *, timeout: float = 7200.0
) -> Iterator[torch.device]:
    """Join the processes that torchrun has started; leave them at the end; end all when one fails.

    Without torchrun (no RANK in the environment) there is one process, and only the device is chosen.

    Args:
        device: "cpu", "cuda" (the GPU with the number LOCAL_RANK) or None (default): "cuda" where there is a
            GPU. Exchange is by gloo, and by nccl for tensors on GPUs.
        timeout: seconds a rank waits for another before it gives up. Default 7200: the longest that one rank
            may work alone while the others wait.

    Yields:
        The device of this process.

    Raises:
        ValueError: if there are more processes than GPUs, or a number is given to "cuda" beside several.
        RankError: if another rank fails.

    Example:
        >>> with from_environment("cpu") as device:
        ...     device, world_size()
        (device(type='cpu'), 1)
    """
    joins = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    chosen = _own_device(device, int(os.environ.get("LOCAL_RANK", "0")) if joins else None)
    if not joins:
        yield chosen
        return
    # Imported later, its functions would keep the group, and with it threads to the interpreter's end.
    from torch.distributed.nn import functional  # noqa: F401

    _left.clear()
    backend = "gloo" if chosen.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        with abort_on_error():
            yield chosen
            barrier()
            _leave_in_order()
    finally:
        if _initialized():
            dist.destroy_process_group()


# --- Inside


def _own_device(device: str | torch.device | None, local_rank: int | None) -> torch.device:
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type != "cuda" or local_rank is None:
        return chosen
    if chosen.index is not None and int(os.environ["WORLD_SIZE"]) > 1:
        raise ValueError(f'each process takes a GPU of its own: give the device "cuda", not "{chosen}"')
    if chosen.index is None:
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise ValueError(
                f"there are {count} GPUs here for process {local_rank + 1}: start torchrun with "
                f'--nproc-per-node={max(count, 1)}, or take the device "cpu"'
            )
        chosen = torch.device("cuda", local_rank)
    torch.cuda.set_device(chosen)
    return chosen


def _carrier(tensor: torch.Tensor) -> torch.device:
    """Where a tensor must lie to be sent by the process group as it was started."""
    backends = dict(pair.split(":") for pair in dist.get_backend_config().split(","))
    backend = backends.get(tensor.device.type)
    if backend == "nccl" or (backend is not None and tensor.device.type == "cpu"):
        return tensor.device
    return torch.device("cpu") if "cpu" in backends else torch.device("cuda", torch.cuda.current_device())


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def _collective() -> Iterator[None]:
    if not _initialized():
        raise RankError("the process group has ended with an error before: start the processes again")
    try:
        yield
    except RuntimeError as error:
        text = "another rank has died or did not answer in time"
        with suppress(Exception):  # what a failed rank has left behind, if the store can still be asked
            store = dist.distributed_c10d._get_default_store()
            text = store.get(_REASON).decode() if store.check([_REASON]) else text
        first = str(error).partition("\n")[0] or type(error).__name__
        raise RankError(f"rank {rank()} of {world_size()} goes no further: {text} ({first})") from error


def _leave(error: BaseException) -> None:
    """Tell the others why, end the group, and remember which rank this was."""
    if not _initialized():  # an inner block has left already
        return
    here = rank(), world_size()
    if not isinstance(error, RankError):
        with suppress(Exception):
            reason = f"rank {here[0]} has failed: {type(error).__name__}: {error}"
            dist.distributed_c10d._get_default_store().set(_REASON, reason)
    with suppress(Exception):
        getattr(dist.distributed_c10d, "_abort_process_group", dist.destroy_process_group)()
    if _initialized():
        with suppress(Exception):
            dist.destroy_process_group()
    _left.append(here)


def _leave_in_order() -> None:
    """Wait until no rank needs another any more; rank 0, which may hold the store of all, leaves last."""
    with suppress(Exception):  # the work is done
        store, end = dist.distributed_c10d._get_default_store(), time.monotonic() + _PATIENCE
        for step, waits in (("done", True), ("gone", is_main())):
            store.add(f"pml_posets/{step}", 1)
            while waits and store.add(f"pml_posets/{step}", 0) < world_size() and time.monotonic() < end:
                time.sleep(0.005)
