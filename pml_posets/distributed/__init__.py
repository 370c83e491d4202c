"""Several processes started by torchrun: the process group, and work that the ranks share."""

from .process_group import (
    RankError,
    all_gather_equal,
    all_gather_objects,
    all_gather_rows,
    barrier,
    broadcast_object,
    broadcast_tensors,
    from_environment,
    guarded,
    is_main,
    rank,
    total,
    world_size,
)
from .sharing import from_main, main_first, shard, shared_work, shares_work, together

__all__ = [
    "RankError",
    "all_gather_equal",
    "all_gather_objects",
    "all_gather_rows",
    "barrier",
    "broadcast_object",
    "broadcast_tensors",
    "from_environment",
    "from_main",
    "guarded",
    "is_main",
    "main_first",
    "rank",
    "shard",
    "shared_work",
    "shares_work",
    "together",
    "total",
    "world_size",
]
