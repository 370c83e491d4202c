"""Several processes started by torchrun: the process group, and work that the ranks share."""

import warnings
from typing import Any

from .process_group import (
    RankError,
    abort_on_error,
    all_gather_equal,
    all_gather_objects,
    all_gather_rows,
    all_reduce_sum,
    barrier,
    broadcast_object,
    broadcast_tensors,
    from_environment,
    is_main,
    rank,
    world_size,
)
from .sharing import from_main, main_first, shard, share_errors, shared_work, shares_work

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
    "from_main",
    "is_main",
    "main_first",
    "rank",
    "shard",
    "share_errors",
    "shared_work",
    "shares_work",
    "world_size",
]

_RENAMED = {"guarded": "abort_on_error", "together": "share_errors", "total": "all_reduce_sum"}


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{name} is now {_RENAMED[name]}", DeprecationWarning, stacklevel=2)
    return globals()[_RENAMED[name]]
