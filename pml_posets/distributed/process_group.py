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

from ._state import RankError, collective, initialized, is_main, leave, left, rank, world_size

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

_PIECE = 2**30  # bytes sent at once
_PATIENCE = 30.0  # seconds that a rank waits for the others at the end


# --- Exchange


def barrier() -> None:
    """Wait until every rank is here.

    Raises:
        RankError: if one will not come.
    """
    all_gather_objects(None)


def broadcast_object(value: Result) -> Result:
    """What rank 0 gives, on every rank (on rank 0 itself, elsewhere a copy).

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
    with collective():
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
    with collective():
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
        RankError: if another rank has failed.

    Example:
        >>> all_gather_rows(np.arange(3))
        array([0, 1, 2])
    """
    if not isinstance(block, np.ndarray | torch.Tensor) or block.ndim == 0:
        raise TypeError(f"a block of rows must be an array or a tensor (n, ...), got {type(block).__name__}")
    if world_size() == 1:
        return block
    is_array = isinstance(block, np.ndarray)
    name = block.dtype.str if isinstance(block, np.ndarray) else str(block.dtype).removeprefix("torch.")
    headers = all_gather_objects((len(block), tuple(block.shape[1:]), name, is_array))
    filled = [header for header in headers if header[0]]
    if not filled:
        return block
    if any(header[1:] != filled[0][1:] for header in filled):
        listed = "; ".join(f"rank {r}: {header[:3]}" for r, header in enumerate(headers))
        raise ValueError(f"blocks of rows must agree in width and dtype, got (rows, width, dtype) {listed}")
    width: tuple[int, ...] = filled[0][1]
    name, is_array = filled[0][2:]
    counts = [header[0] for header in headers]
    device = block.device if isinstance(block, torch.Tensor) else torch.device("cpu")
    sample = (
        np.empty((1, *width), np.dtype(name))
        if is_array
        else torch.empty((1, *width), dtype=getattr(torch, name))
    )
    padded = torch.zeros((max(counts), _as_bytes(sample).numel()), dtype=torch.uint8, device=device)
    if len(block):
        padded[: len(block)] = _as_bytes(block).view(len(block), -1)
    pieces = [all_gather_equal(piece) for piece in padded.split(max(1, _PIECE // max(1, padded.shape[1])))]
    padded = torch.cat([piece.unflatten(0, (len(counts), -1)) for piece in pieces], dim=1)
    whole = torch.cat([rows[:count] for rows, count in zip(padded, counts, strict=True)]).flatten()  # bytes
    shape = (sum(counts), *width)
    result: Any = whole.numpy().view(name) if is_array else whole.view(getattr(torch, name))
    return result.reshape(shape)


def all_gather_equal(x: torch.Tensor) -> torch.Tensor:
    """As `all_gather_rows`, of tensors of one shape on all ranks, in a single exchange.

    Args:
        x: (n, ...) of any dtype on any device.

    Returns:
        (n x world size, ...), without gradients; with one process x itself.

    Raises:
        RankError: if another rank has failed.
    """
    if world_size() == 1:
        return x
    gathered = torch.empty((world_size(), *x.shape), dtype=x.dtype, device=_carrier(x))
    with collective():
        dist.all_gather(
            [part.reshape(-1).view(torch.uint8) for part in gathered], _as_bytes(x).to(gathered.device)
        )
    return gathered.to(x.device).flatten(0, 1)


def all_reduce_sum(x: torch.Tensor) -> torch.Tensor:
    """The sum over the ranks of tensors of one shape, without gradients; the same bits on all of them.

    Raises:
        RankError: if another rank has failed.
    """
    if world_size() == 1:
        return x
    summed = x.detach().clone().to(_carrier(x))
    with collective():
        dist.all_reduce(summed)
    return summed.to(x.device)


def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Give tensors (weights, buffers) the values they have on rank 0, in place, bit for bit.

    Args:
        tensors: of the same shapes and dtypes on every rank.

    Raises:
        RankError: if another rank has failed.
    """
    if world_size() == 1:
        return
    with collective(), torch.no_grad():
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
    on all ranks: end the script, or start the processes again. A rank that is killed closes its connections,
    which gloo notices at once; on GPUs torchrun ends the others.
    """
    if world_size() == 1 or not initialized():
        yield
        return
    try:
        yield
    except BaseException as error:
        leave(error)
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
    left.clear()
    backend = "gloo" if chosen.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        with abort_on_error():
            yield chosen
            barrier()
            _leave_in_order()
    finally:
        if initialized():
            dist.destroy_process_group()


# --- Inside


def _own_device(device: str | torch.device | None, local_rank: int | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    if chosen.type != "cuda" or local_rank is None:
        return chosen
    if chosen.index is not None and int(os.environ["WORLD_SIZE"]) > 1:
        raise ValueError(f'each process takes a GPU of its own: give the device "cuda", not "{chosen}"')
    count = torch.cuda.device_count()
    if chosen.index is None:
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


def _as_bytes(block: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(block, torch.Tensor):
        return block.detach().contiguous().reshape(-1).view(torch.uint8)
    return torch.from_numpy(np.require(block, requirements=["C", "W"]).reshape(-1).view(np.uint8))


def _leave_in_order() -> None:
    """Wait until no rank needs another any more; rank 0, which may hold the store of all, leaves last."""
    with suppress(Exception):  # the work is done
        store, end = dist.distributed_c10d._get_default_store(), time.monotonic() + _PATIENCE
        for step, waits in (("done", True), ("gone", is_main())):
            store.add(f"pml_posets/{step}", 1)
            while waits and store.add(f"pml_posets/{step}", 0) < world_size() and time.monotonic() < end:
                time.sleep(0.005)
