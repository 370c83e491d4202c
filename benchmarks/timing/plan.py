"""Which rows a run of speed.py has, and how each is made."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.timing import graph, loss, small, training, ystep
from benchmarks.timing.clock import in_child
from benchmarks.timing.loss import too_large
from pml_posets._memory import available_bytes

PARTS = ("ystep", "loss", "training", "feeding", "hog", "startup", "graph")
RIVALS = ("kmeans", "agglomerative", "hdbscan")

Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Job:
    """Rows that are timed together.

    Args:
        part: of the benchmark.
        dataset: what is timed: sizes, in words.
        methods: of the rows.
        settings: what their numbers depend on.
        run: method to its metrics.
    """

    part: str
    dataset: str
    methods: tuple[str, ...]
    settings: dict[str, Any]
    run: Callable[[], Metrics] = field(compare=False)


def jobs(got: argparse.Namespace) -> Iterator[Job]:
    """All that the options ask for, the small before the large."""
    makers = {
        "startup": _startup,
        "loss": _loss,
        "hog": _hog,
        "training": _training,
        "feeding": _feeding,
        "ystep": _ystep,
        "graph": _graph,
    }
    for part, make in makers.items():
        if part in got.part:
            yield from make(got)


def skipped(got: argparse.Namespace) -> list[str]:
    """What is not timed here, and why."""
    lines = []
    if {"training", "feeding"} & set(got.part) and not torch.cuda.is_available():
        lines.append("GPU rows (AlexNet at 227 px, bf16, channels-last): left out, torch sees no GPU here.")
    if "loss" in got.part and too_large(max(got.batch_sizes), available_bytes()):
        lines.append(
            "NTXentLoss, where nan: it compares every positive pair with every negative, N^3 memory."
        )
    if "ystep" in got.part and max(got.samples) > got.rival_samples:
        lines.append(
            f"Rivals of the y-step: only up to --rival-samples {got.rival_samples}; agglomerative clustering "
            "takes N^2 memory, HDBSCAN N^2 time in Python's hands."
        )
    return lines


def _ystep(got: argparse.Namespace) -> Iterator[Job]:
    for num_samples in sorted(got.samples):
        sizes = (num_samples, got.dim, got.seed)
        repeats = got.repeats if num_samples <= 30_000 else 1
        settings = {"repeats": repeats, "threads": got.threads}
        name = f"planted {num_samples} x {got.dim}"
        methods = tuple(got.method)

        def both(sizes: Any = sizes, repeats: int = repeats, methods: tuple[str, ...] = methods) -> Metrics:
            return in_child(ystep.time_y_step, *sizes, repeats, methods, got.quiet, threads=got.threads)

        yield Job("ystep", name, ("floor", *methods), settings, both)
        for rival in RIVALS if num_samples <= got.rival_samples else ():

            def one(rival: str = rival, sizes: Any = sizes) -> Metrics:
                return {rival: in_child(ystep.time_rival, rival, *sizes, threads=got.threads)}

            yield Job("ystep", name, (rival,), {"threads": got.threads}, one)


def _loss(got: argparse.Namespace) -> Iterator[Job]:
    for compiled in (False, True) if got.compile else (False,):
        method = "compiled" if compiled else "eager"
        for size in got.batch_sizes:

            def run(size: int = size, compiled: bool = compiled, method: str = method) -> Metrics:
                repeats = max(2, min(50, got.repeats * 2000 // size))
                arguments = (size, got.loss_dim, got.seed, repeats, compiled, got.quiet)
                return {method: in_child(loss.time_loss, *arguments, threads=got.threads)}

            settings = {"repeats": got.repeats, "threads": got.threads}
            yield Job("loss", f"batch {size} x {got.loss_dim}", (method,), settings, run)


def _networks(got: argparse.Namespace, function: Any, part: str, method: str, workers: int) -> Job:
    for_device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = (got.image_size, got.batch_size, got.steps, workers, got.repeats, got.seed, for_device)
    settings = {"steps": got.steps, "repeats": got.repeats, "threads": got.threads, "device": for_device}

    def run() -> Metrics:
        return {method: in_child(function, *arguments, got.quiet, threads=got.threads)}

    return Job(part, f"{got.image_size} px, batch {got.batch_size}", (method,), settings, run)


def _training(got: argparse.Namespace) -> Iterator[Job]:
    for workers in sorted({0, got.workers}):
        yield _networks(got, training.time_training, "training", f"{workers} workers", workers)


def _feeding(got: argparse.Namespace) -> Iterator[Job]:
    yield _networks(got, training.time_feeding, "feeding", "image store", 0)


def _hog(got: argparse.Namespace) -> Iterator[Job]:
    def run() -> Metrics:
        arguments = (got.images, got.repeats, got.seed, got.quiet)
        return {"hog-lda": in_child(small.time_hog, *arguments, threads=got.threads)}

    settings = {"repeats": got.repeats, "threads": got.threads}
    yield Job("hog", f"{got.images} images, 96 px", ("hog-lda",), settings, run)


def _startup(got: argparse.Namespace) -> Iterator[Job]:
    def run() -> Metrics:
        return {"import": small.time_startup(max(3, got.repeats), got.quiet)}

    yield Job("startup", "import pml_posets", ("import",), {"repeats": got.repeats}, run)


def _graph(got: argparse.Namespace) -> Iterator[Job]:
    def run() -> Metrics:
        arguments = (got.nodes, got.degree, got.graph_dim, got.seed, got.quiet)
        return {"y-step": in_child(graph.time_graph, *arguments, threads=got.threads)}

    name = f"graph {got.nodes} x {got.degree}, {got.graph_dim}-d"
    yield Job("graph", name, ("y-step",), {"threads": got.threads}, run)
