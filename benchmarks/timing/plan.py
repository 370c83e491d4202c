"""Which rows a run of speed.py has, and how each is measured."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.timing import extraction, graph, loss, small, training, ystep
from benchmarks.timing.clock import in_child
from pml_posets._memory import available_bytes

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
        "extraction": _extraction,
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
    if "loss" in got.part and loss.too_large(max(got.batch_sizes), available_bytes()):
        lines.append(
            "NTXentLoss, where nan: it compares every positive pair with every negative, N^3 memory."
        )
    if "ystep" in got.part and max(got.samples) > got.rival_samples:
        lines.append(
            f"Rivals of the y-step: only up to --rival-samples {got.rival_samples}; agglomerative clustering "
            "takes N^2 memory, HDBSCAN N^2 time in Python."
        )
    return lines


def _job(
    got: argparse.Namespace,
    part: str,
    dataset: str,
    method: str | tuple[str, ...],
    settings: dict[str, Any],
    function: Callable[..., Any],
    *arguments: Any,
) -> Job:
    """A function that is called in a fresh process; of a single method it returns the metrics alone."""

    def run() -> Metrics:
        metrics = in_child(function, *arguments, threads=got.threads)
        return {method: metrics} if isinstance(method, str) else metrics

    methods = (method,) if isinstance(method, str) else method
    return Job(part, dataset, methods, {**settings, "threads": got.threads}, run)


def _ystep(got: argparse.Namespace) -> Iterator[Job]:
    methods = tuple(got.method)
    for num_samples in sorted(got.samples):
        sizes, name = (num_samples, got.dim, got.seed), f"planted {num_samples} x {got.dim}"
        repeats = got.repeats if num_samples <= 30_000 else 1
        steered = got.steering == "full"
        settings = {"repeats": repeats} | ({} if steered else {"steering": got.steering})
        rest = (ystep.time_y_step, *sizes, repeats, methods, steered, got.quiet)
        shown = name if steered else f"{name}, defaults"
        yield _job(got, "ystep", shown, ("floor", *methods), settings, *rest)
        for rival in RIVALS if num_samples <= got.rival_samples else ():
            yield _job(got, "ystep", name, rival, {}, ystep.time_rival, rival, *sizes)


def _loss(got: argparse.Namespace) -> Iterator[Job]:
    for compiled in (False, True) if got.compile else (False,):
        for size in got.batch_sizes:
            repeats = max(2, min(50, got.repeats * 2000 // size))
            arguments = (size, got.loss_dim, got.seed, repeats, compiled, got.quiet)
            name, method = f"batch {size} x {got.loss_dim}", "compiled" if compiled else "eager"
            yield _job(got, "loss", name, method, {"repeats": got.repeats}, loss.time_loss, *arguments)


def _networks(got: argparse.Namespace, part: str, method: str, function: Any, workers: int) -> Job:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = (got.image_size, got.batch_size, got.steps, workers, got.seed, device)
    shape = training.Shape(*sizes, got.network, got.bfloat16, got.channels_last)
    settings = {"steps": got.steps, "repeats": got.repeats, "device": device}
    name = f"{got.image_size} px, batch {got.batch_size}"
    changed = {"bfloat16": got.bfloat16, "channels last": got.channels_last}
    if got.network != "alexnet" or any(changed.values()):
        name = ", ".join([got.network, name, *(word for word, on in changed.items() if on)])
    return _job(got, part, name, method, settings, function, shape, got.repeats, got.quiet)


def _training(got: argparse.Namespace) -> Iterator[Job]:
    for workers in sorted({0, got.workers}):
        yield _networks(got, "training", f"{workers} workers", training.time_training, workers)


def _feeding(got: argparse.Namespace) -> Iterator[Job]:
    yield _networks(got, "feeding", "image store", training.time_feeding, 0)


def _extraction(got: argparse.Namespace) -> Iterator[Job]:
    arguments = (got.image_size, got.images, got.seed, got.repeats, got.quiet)
    name = f"ResNet-18, {got.images} images, {got.image_size} px"
    yield _job(
        got, "extraction", name, "extract", {"repeats": got.repeats}, extraction.time_extraction, *arguments
    )


def _hog(got: argparse.Namespace) -> Iterator[Job]:
    arguments = (got.images, got.repeats, got.seed, got.quiet)
    name = f"{got.images} images, 96 px"
    yield _job(got, "hog", name, "hog-lda", {"repeats": got.repeats}, small.time_hog, *arguments)


def _startup(got: argparse.Namespace) -> Iterator[Job]:
    def run() -> Metrics:
        return {"import": small.time_startup(max(3, got.repeats), got.quiet)}

    yield Job("startup", "import pml_posets", ("import",), {"repeats": got.repeats}, run)


def _graph(got: argparse.Namespace) -> Iterator[Job]:
    arguments = (got.nodes, got.degree, got.graph_dim, got.seed, got.quiet)
    name = f"graph {got.nodes} x {got.degree}, {got.graph_dim}-d"
    yield _job(got, "graph", name, "y-step", {}, graph.time_graph, *arguments)
