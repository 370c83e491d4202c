"""Several processes started by torchrun: the process group, and work that the ranks share."""

from .._moved import old_names
from .process_group import *  # noqa: F403
from .process_group import __all__ as _group
from .sharing import *  # noqa: F403
from .sharing import __all__ as _shared

__all__ = sorted([*_group, *_shared])

_NEW = {"guarded": "abort_on_error", "together": "share_errors", "total": "all_reduce_sum"}
__getattr__ = old_names(__name__, {old: f"distributed.{new}" for old, new in _NEW.items()})
