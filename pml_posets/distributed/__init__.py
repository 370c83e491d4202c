"""Several processes started by torchrun: the process group, and work that the ranks share."""

import warnings
from typing import Any

from .process_group import *  # noqa: F403
from .process_group import __all__ as _group
from .sharing import *  # noqa: F403
from .sharing import __all__ as _shared

__all__ = sorted([*_group, *_shared])

_RENAMED = {"guarded": "abort_on_error", "together": "share_errors", "total": "all_reduce_sum"}


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{name} is now {_RENAMED[name]}", DeprecationWarning, stacklevel=2)
    return globals()[_RENAMED[name]]
