"""The y-step as shipped, `PseudoLabelSampler.regroup`, against the exact neighbor search of faiss alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from benchmarks.timing.clock import Times, forget_peak, peak_bytes
from benchmarks.timing.planted import Planted, plant
from pml_posets import PseudoLabelSampler, RelaxedAssignment, SurrogateGrouping
from pml_posets._memory import warn_if_short, y_step_bytes
from pml_posets.neighbors.nearest import Method, Neighbors

NEIGHBORS = 32
PHASES = ("search", "grouping", "assignment", "posets")


@dataclass
class Answer:
    """What one y-step came to: neighbors, labels, and the seconds of each of its phases."""

    neighbors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose seconds are added to a phase; of a search the neighbors are kept."""

        @wraps(function)  # the sampler asks for its signature
        def run(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **options)
            self.seconds[phase] += time.perf_counter() - start
            if isinstance(result, Neighbors):
                self.neighbors = result.indices
            return result

        return run


def y_step(planted: Planted, method: Method, steered: bool = True) -> Callable[[], Answer]:
    """A sampler that has not grouped yet; the call is its first y-step.

    Steered, the classes have a wanted number and size, and end with the relaxed assignment; else the grouping
    has its defaults, and there is no assignment.
    """
    grouping, assignment, answer = SurrogateGrouping(method=method), None, Answer()
    parts: list[tuple[Any, str, str]] = [
        (grouping, "find_neighbors", "search"),
        (grouping, "fit_predict", "grouping"),
    ]
    if steered:
        steering = {"max_size": 16, "mean_size": 8.0, "top_fraction": 0.01, "max_neighbors": NEIGHBORS}
        grouping.set_params(num_classes=planted.num_classes, **steering)
        assignment = RelaxedAssignment()
        parts.append((assignment, "fit_predict", "assignment"))
    for part, name, phase in parts:
        setattr(part, name, answer.timed(phase, getattr(part, name)))
    sampler = PseudoLabelSampler(
        planted.features, batch_size=64, grouping=grouping, assignment=assignment, sources=planted.sources
    )

    def regroup() -> Answer:
        start = time.perf_counter()
        answer.labels = sampler.regroup(planted.features).labels
        total = time.perf_counter() - start
        answer.seconds["posets"] = total - sum(answer.seconds.values())  # and the checks of the features
        return answer

    return regroup


def time_y_step(
    num_samples: int,
    num_dims: int,
    seed: int,
    repeats: int,
    methods: tuple[Method, ...],
    steered: bool,
    quiet: bool,
) -> dict[str, dict[str, float]]:
    """Times and qualities of the floor and of each method, in turns; to be called in a process of its own.

    Returns:
        Method ("floor", "exact", "approximate", "auto") to its metrics.
    """
    import faiss

    size = 4 * num_samples * num_dims
    needed = size + y_step_bytes(num_samples, num_dims, NEIGHBORS)
    warn_if_short(needed, f"a y-step of {num_samples} x {num_dims} features", certain=size)
    planted = plant(num_samples, num_dims, seed)
    answers: dict[str, Answer] = {}
    peaks: dict[str, int] = {}
    times = Times()

    def floor() -> None:
        index = faiss.IndexFlatL2(num_dims)
        index.add(planted.features)
        index.search(planted.features, NEIGHBORS + 1)

    names = ("floor", *methods)
    bar = tqdm(total=repeats * len(names), desc=f"y-step {num_samples} x {num_dims}", disable=quiet)
    with bar:
        for _ in range(repeats):
            for name in names:
                bar.set_postfix_str(name)
                step: Callable[[], Any] = floor if name == "floor" else y_step(planted, name, steered)  # type: ignore
                forget_peak()
                wall, cpu = time.perf_counter(), time.process_time()
                answer = step()
                times.add(name, time.perf_counter() - wall, time.process_time() - cpu)
                peaks[name] = max(peaks.get(name, 0), peak_bytes())
                if answer is not None:
                    answers[name] = answer
                bar.update()
    metrics = {name: _cost(name, times, peaks[name], planted.features.nbytes) for name in names}
    for name, answer in answers.items():
        metrics[name] |= _quality(answer, planted)
        if name == "approximate" and "exact" in answers:
            metrics[name] |= _against_exact(answer, answers["exact"], times)
    return metrics


def _cost(name: str, times: Times, peak: int, num_bytes: int) -> dict[str, float]:
    return {
        "seconds": times.seconds(name),
        "cpu_seconds": times.seconds(name, "cpu"),
        "over_floor": times.ratio(name, "floor"),
        "over_floor_cpu": times.ratio(name, "floor", "cpu"),
        "peak_gib": peak / 2**30,
        "peak_over_features": peak / num_bytes,
    }


def _quality(answer: Answer, planted: Planted) -> dict[str, float]:
    both = (answer.labels >= 0) & (planted.postures >= 0)
    return {
        **{f"seconds_{phase}": answer.seconds[phase] for phase in PHASES},
        "classes": float(answer.labels.max() + 1),
        "assigned": float((answer.labels >= 0).mean()),
        "purity": purity(answer.labels[both], planted.postures[both]),
    }


def _against_exact(answer: Answer, exact: Answer, times: Times) -> dict[str, float]:
    from sklearn.metrics import adjusted_rand_score

    return {
        "times_faster": times.ratio("exact", "approximate"),
        "times_faster_cpu": times.ratio("exact", "approximate", "cpu"),
        "times_faster_search": exact.seconds["search"] / answer.seconds["search"],
        "recall_at_10": recall(answer.neighbors, exact.neighbors, 10),
        "ari": float(adjusted_rand_score(_singletons(exact.labels), _singletons(answer.labels))),
    }


def recall(found: np.ndarray, exact: np.ndarray, k: int) -> float:
    """Mean share of each row's first k exact neighbors that are among the k found."""
    k = min(k, exact.shape[1])
    same = (found[:, :k, None] == exact[:, None, :k]) & (exact[:, None, :k] >= 0)
    return float(same.sum() / max(1, int((exact[:, :k] >= 0).sum())))


def _singletons(labels: np.ndarray) -> np.ndarray:
    """Unassigned samples, each a class of its own."""
    free = labels < 0
    return np.where(free, labels.max() + 1 + np.cumsum(free), labels)


def purity(labels: np.ndarray, truth: np.ndarray) -> float:
    """Share of the samples that have the posture most frequent in their class; NaN without samples."""
    if not labels.size:
        return float("nan")
    pairs, counts = np.unique(np.stack([labels, truth], 1), axis=0, return_counts=True)
    most = np.zeros(labels.max() + 1)
    np.maximum.at(most, pairs[:, 0], counts)
    return float(most.sum() / labels.size)


def time_rival(name: str, num_samples: int, num_dims: int, seed: int) -> dict[str, float]:
    """Seconds of another clustering on the same features; to be called in a process of its own."""
    from sklearn.cluster import HDBSCAN, AgglomerativeClustering

    from pml_posets.grouping.kmeans import KMeansGrouping

    planted = plant(num_samples, num_dims, seed)
    rivals: dict[str, Callable[[], Any]] = {
        "agglomerative": lambda: AgglomerativeClustering(planted.num_classes, linkage="average"),
        "hdbscan": lambda: HDBSCAN(min_cluster_size=3, copy=True),
        "kmeans": lambda: KMeansGrouping(planted.num_classes, random_state=seed),
    }
    wall = time.perf_counter()
    labels = rivals[name]().fit_predict(planted.features)
    seconds = time.perf_counter() - wall
    both = (labels >= 0) & (planted.postures >= 0)
    return {
        "seconds": seconds,
        "peak_gib": peak_bytes() / 2**30,
        "peak_over_features": peak_bytes() / planted.features.nbytes,
        "classes": float(labels.max() + 1),
        "purity": purity(labels[both], planted.postures[both]),
    }
