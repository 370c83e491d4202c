"""How things are timed: in turns, by the wall and by the processor, each part in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm


@dataclass
class Times:
    """Seconds of several things, done in turns.

    Args:
        wall: name to the seconds that passed, one a repeat.
        cpu: name to the seconds that this process computed, all its threads together.
    """

    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, wall: float, cpu: float) -> None:
        """One more repeat of a thing."""
        self.wall.setdefault(name, []).append(wall)
        self.cpu.setdefault(name, []).append(cpu)

    def seconds(self, name: str, kind: str = "wall") -> float:
        """The median."""
        return float(np.median(getattr(self, kind)[name]))

    def ratio(self, name: str, to: str, kind: str = "wall") -> float:
        """The median of the ratios of each repeat: neighbors in time share what else runs."""
        times = getattr(self, kind)
        return float(np.median(np.divide(times[name], times[to])))


def in_turns(
    things: Mapping[str, Callable[[], Any]], repeats: int, title: str, quiet: bool, warm_up: int = 1
) -> Times:
    """Do each of several things, then each again: A B A B.

    Args:
        things: name to what is done.
        repeats: that count, from 1.
        title, quiet: of the progress bar.
        warm_up: repeats before them, not counted.
    """
    times = Times()
    with tqdm(total=(repeats + warm_up) * len(things), desc=title, disable=quiet) as bar:
        for number in range(-warm_up, repeats):
            for name, thing in things.items():
                wall, cpu = time.perf_counter(), time.process_time()
                thing()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                bar.update()
                if number >= 0:
                    times.add(name, wall, cpu)
    return times


def forget_peak() -> bool:
    """Reset the peak of this process's memory; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return True
    except OSError:
        return False


def peak_bytes() -> int:
    """The most memory this process held, since `forget_peak`."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_child(function: Callable[..., Any], *arguments: Any, threads: int = 0) -> Any:
    """Call a function in a fresh process, which ends when this one does, even if it is killed.

    Args:
        function: of a module, not a lambda.
        arguments: that can be pickled, as what it returns.
        threads: of torch and faiss there; 0: as many as they choose.

    Raises:
        ValueError, MemoryError, ...: what the function raised.
        ChildProcessError: if the process died (of too little memory, say).
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_call, args=(sender, threads, function, arguments))
    child.start()
    sender.close()
    try:
        good, answer = receiver.recv()
    except EOFError:
        child.join()
        raise ChildProcessError(
            f"the process that timed it ended with status {child.exitcode}: was there enough memory?"
        ) from None
    child.join()
    if not good:
        raise answer
    return answer


def _call(pipe: Any, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if threads:
        import faiss
        import torch

        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
    try:
        pipe.send((True, function(*arguments)))
    except Exception as error:
        pipe.send((False, error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
