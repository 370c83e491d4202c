"""Several processes started by torchrun: the process group, and work that the ranks share."""

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
