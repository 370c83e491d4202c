"""Several processes, one a GPU or a share of the cores: the one place that knows torch.distributed.

Every process (a rank) runs the same script and calls these functions in the same order. Without a process
group, or with one process in it, each of them is the identity or does nothing, so that callers need not ask.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

__all__ = [
    "RankError",
    "all_gather_equal",
    "all_gather_objects",
    "all_gather_rows",
    "barrier",
    "broadcast_object",
    "broadcast_tensors",
    "from_environment",
    "guarded",
    "is_main",
    "rank",
    "total",
    "world_size",
]

Rows = TypeVar("Rows", np.ndarray, torch.Tensor)
Result = TypeVar("Result")

_REASON = "pml_posets/reason"  # in the store that all ranks read: why one of them left
_PIECE = 2**30  # bytes sent at once
_left: list[tuple[int, int]] = []  # (rank, world size) of this process after it has left a failed group


class RankError(RuntimeError):
    """Another rank has failed, died or not answered in time; the message says why if that is known."""


def rank() -> int:
    """Number of this process, from 0; 0 without a process group.

    Example:
        >>> rank(), world_size(), is_main()
        (0, 1, True)
    """
    if _initialized():
        return dist.get_rank()
    return _left[-1][0] if _left else 0


def world_size() -> int:
    """How many processes there are; 1 without a process group."""
    if _initialized():
        return dist.get_world_size()
    return _left[-1][1] if _left else 1


def is_main() -> bool:
    """True for rank 0, which alone writes files and shows progress."""
    return rank() == 0


# --- Exchange


def barrier() -> None:
    """Wait until every rank is here.

    Raises:
        RankError: if one will not come.
    """
    all_gather_objects(None)


def broadcast_object(value: Result) -> Result:
    """What rank 0 gives, on every rank (there itself, elsewhere a copy).

    Args:
        value: anything that can be pickled; only that of rank 0 matters.

    Raises:
        RankError: if another rank has failed.

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
    """What the ranks give, in their order, on every rank; for small things (whole arrays: `all_gather_rows`).

    Raises:
        RankError: if another rank has failed.
    """
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
        ValueError: on all ranks, if the blocks do not fit together.
        RankError: if another rank has failed.

    Example:
        >>> all_gather_rows(np.arange(3))
        array([0, 1, 2])
    """
    if not isinstance(block, np.ndarray | torch.Tensor) or block.ndim == 0:
        raise TypeError(f"a block of rows must be an array or a tensor (n, ...), got {type(block).__name__}")
    if world_size() == 1:
        return block
    of_arrays = isinstance(block, np.ndarray)
    name = block.dtype.str if isinstance(block, np.ndarray) else str(block.dtype).removeprefix("torch.")
    heads = all_gather_objects((len(block), tuple(block.shape[1:]), name, of_arrays))
    filled = [head for head in heads if head[0]]
    if not filled:
        return block
    kind: tuple[int, tuple[int, ...], str, bool] = filled[0]
    if any(head[1:] != filled[0][1:] for head in filled):
        found = "; ".join(f"rank {r}: {head[:3]}" for r, head in enumerate(heads))
        raise ValueError(f"blocks of rows must agree in width and dtype, got (rows, width, dtype) {found}")
    shape: tuple[int, ...] = (sum(head[0] for head in heads), *kind[1])
    whole: Any
    if kind[3]:
        whole = np.empty(shape, np.dtype(kind[2]))
        flat = torch.from_numpy(whole.reshape(-1).view(np.uint8))
    else:
        place = block.device if isinstance(block, torch.Tensor) else torch.device("cpu")
        whole = torch.empty(shape, dtype=getattr(torch, kind[2]), device=place)
        flat = whole.reshape(-1).view(torch.uint8)
    sent = flat.to(_carrier(flat))
    bytes_of_row, start = len(flat) // shape[0], 0
    with _collective():
        for source, head in enumerate(heads):
            part = sent[start : start + head[0] * bytes_of_row]
            start += len(part)
            if source == rank() and len(part):
                part.copy_(_as_bytes(block))
            for piece in part.split(_PIECE):
                if len(piece):
                    dist.broadcast(piece, src=source)
    if sent.device != flat.device:
        flat.copy_(sent)
    return whole


def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Give tensors (weights, buffers) the values they have on rank 0, in place, bit for bit.

    Args:
        tensors: of the same shapes and dtypes on every rank.

    Raises:
        RankError: if another rank has failed.
    """
    given = list(tensors)
    if world_size() == 1 or not given:
        return
    place = _carrier(given[0])
    sizes = [tensor.numel() * tensor.element_size() for tensor in given]
    with _collective(), torch.no_grad():
        flat = torch.cat([_as_bytes(tensor).to(place) for tensor in given])
        for piece in flat.split(_PIECE):
            dist.broadcast(piece, src=0)
        if not is_main():
            for tensor, part in zip(given, flat.split(sizes), strict=True):
                received = part.clone().view(tensor.dtype)  # a clone lies where numbers may begin
                tensor.copy_(received.reshape(tensor.shape))


def all_gather_equal(x: torch.Tensor) -> torch.Tensor:
    """As `all_gather_rows`, of tensors of one shape on all ranks, in a single step.

    Args:
        x: (n, ...) of any dtype on any device.

    Returns:
        (n x world size, ...), without gradients; with one process x itself.

    Raises:
        RankError: if another rank has failed.
    """
    if world_size() == 1:
        return x
    whole = torch.empty((world_size(), *x.shape), dtype=x.dtype, device=_carrier(x))
    with _collective():
        parts = [part.reshape(-1).view(torch.uint8) for part in whole]
        dist.all_gather(parts, _as_bytes(x).to(whole.device))
    return whole.to(x.device).flatten(0, 1)


def total(x: torch.Tensor) -> torch.Tensor:
    """The sum over the ranks of tensors of one shape, without gradients; the same bits on all of them.

    Raises:
        RankError: if another rank has failed.
    """
    if world_size() == 1:
        return x
    sent = x.detach().clone().to(_carrier(x))
    with _collective():
        dist.all_reduce(sent)
    return sent.to(x.device)


# --- Start and end


@contextmanager
def guarded() -> Iterator[None]:
    """An error of one rank inside ends the process group, so that no other waits for this one in vain.

    The others find out in their next exchange, and raise `RankError` with the reason. The group is then lost
    on all ranks: end the script, or start the processes anew. A rank that is killed closes its connections,
    which gloo notices at once; on GPUs torchrun ends the others.
    """
    if world_size() == 1 or not _initialized():
        yield
        return
    try:
        yield
    except BaseException as error:
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
            GPU. Exchange is by gloo, on GPUs by nccl for what lies there.
        timeout: seconds a rank waits for another before it gives up. Default 7200: the longest that one rank
            may work alone while the others wait.

    Yields:
        The device of this process.

    Raises:
        ValueError: if there are more processes than GPUs, or a number is given to "cuda" beside several.
        RankError: if another rank fails.

    Example:
        >>> with from_environment("cpu") as place:
        ...     place, world_size()
        (device(type='cpu'), 1)
    """
    joins = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    place = _own_device(device, int(os.environ.get("LOCAL_RANK", "0")) if joins else None)
    if not joins:
        yield place
        return
    _left.clear()
    backend = "gloo" if place.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        with guarded():
            yield place
            barrier()
    finally:
        if _initialized():
            dist.destroy_process_group()


# --- Inside


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _own_device(device: str | torch.device | None, local_rank: int | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(device)
    if place.type != "cuda" or local_rank is None:
        return place
    if place.index is not None and int(os.environ["WORLD_SIZE"]) > 1:
        raise ValueError(f'each process takes a GPU of its own: give the device "cuda", not "{place}"')
    count = torch.cuda.device_count()
    if place.index is None:
        if local_rank >= count:
            raise ValueError(
                f"there are {count} GPUs here for process {local_rank + 1}: start torchrun with "
                f'--nproc-per-node={max(count, 1)}, or take the device "cpu"'
            )
        place = torch.device("cuda", local_rank)
    torch.cuda.set_device(place)
    return place


def _carrier(tensor: torch.Tensor) -> torch.device:
    """Where a tensor must lie to be sent by the process group as it was started."""
    backends = dict(pair.split(":") for pair in dist.get_backend_config().split(","))
    backend = backends.get(tensor.device.type)
    if backend == "nccl" or (backend is not None and tensor.device.type == "cpu"):
        return tensor.device
    return torch.device("cpu") if "cpu" in backends else torch.device("cuda", torch.cuda.current_device())


def _as_bytes(block: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(block, torch.Tensor):
        return block.detach().contiguous().reshape(-1).view(torch.uint8)
    return torch.from_numpy(np.require(block, requirements=["C", "W"]).reshape(-1).view(np.uint8))


@contextmanager
def _collective() -> Iterator[None]:
    if not _initialized():
        raise RankError("the process group has ended with an error before: start the processes anew")
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


def _leave(error: BaseException) -> None:
    place = rank(), world_size()
    if not _initialized():  # an inner guard has left already
        return
    if not isinstance(error, RankError):
        with suppress(Exception):
            dist.distributed_c10d._get_default_store().set(
                _REASON, f"rank {place[0]} has failed: {type(error).__name__}: {error}"
            )
    abort = getattr(dist.distributed_c10d, "_abort_process_group", dist.destroy_process_group)
    with suppress(Exception):
        abort()
    if _initialized():
        with suppress(Exception):
            dist.destroy_process_group()
    _left.append(place)
