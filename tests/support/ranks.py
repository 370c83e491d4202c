"""Starts a few real processes that form a process group, and brings back what they return."""

import contextlib
import multiprocessing
import os
import socket
import time
import traceback

import torch

from pml_posets.distributed.process_group import from_environment

LIMIT = 60.0  # seconds; a hang is a failure
# Imported once for all processes; an optimizer imports torch._dynamo, which takes seconds.
PRELOADED = [
    "pml_posets.training.joint", "pml_posets.grouping.surrogate", "faiss", "torch._dynamo", "pytest", "ranks",
    "trainings",
]  # fmt: skip


def run(world, function, *args, limit=LIMIT, timeout=40.0, joined=True):
    """What function(*args) returns on each rank: ("done", value), ("error", text) or ("dead", exit code).

    joined False: the function joins the process group itself.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, processes = [], []
    for rank in range(world):
        ours, theirs = context.Pipe(duplex=False)
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": 1,
        }
        given = theirs, environment, timeout if joined else None, function, args
        process = context.Process(target=_child, args=given)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    end = time.monotonic() + limit
    results = []
    try:
        for number, (pipe, process) in enumerate(zip(pipes, processes, strict=True)):
            if not pipe.poll(max(0.0, end - time.monotonic())):
                raise AssertionError(f"rank {number} of {world} hangs: {results}")
            try:
                results.append(pipe.recv())
            except EOFError:
                process.join(5)
                results.append(("dead", process.exitcode))
    finally:
        for process in processes:
            process.join(max(0.0, min(10.0, end - time.monotonic())))
            process.kill()
            process.join()
    return results


def values(results):
    """The values, if no rank has failed."""
    failed = [(number, text) for number, (state, text) in enumerate(results) if state != "done"]
    assert not failed, "\n".join(f"rank {number}: {text}" for number, text in failed)
    return [value for _, value in results]


def _child(pipe, environment, timeout, function, args):
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    try:
        import faiss

        faiss.omp_set_num_threads(1)
        with contextlib.nullcontext() if timeout is None else from_environment("cpu", timeout=timeout):
            value = function(*args)
        pipe.send(("done", value))
    except BaseException as error:
        text = "".join(traceback.format_exception(error)) if os.environ.get("TRACE") else ""
        pipe.send(("error", f"{type(error).__name__}: {error}{text}"))
    pipe.close()
