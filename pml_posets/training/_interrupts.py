"""Ctrl-C that waits for the end of what must not be done by half."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["finish_first"]


@contextmanager
def finish_first() -> Iterator[None]:
    """Hold a Ctrl-C back until the block has ended, and raise the KeyboardInterrupt then.

    A second Ctrl-C comes through at once; so does each outside of the main thread, or where the program has
    a handler of its own.
    """
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if asked:  # workers of a data loader end by the same Ctrl-C
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked:
        raise KeyboardInterrupt
