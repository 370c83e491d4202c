"""The y-step against the neighbour search that faiss does alone, exact and approximate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from benchmarks.timing.clock import Times, forget_peak, peak_bytes
from benchmarks.timing.planted import Planted, plant
from pml_posets.neighbors.nearest import Method

NEIGHBORS = 32
MOST_NEAREST = 5  # Z; the posets of Z = 2 are its first two columns
PHASES = ("search", "grouping", "posets", "assignment")


@dataclass
class Answer:
    """What one y-step came to: neighbours, labels, and the seconds of each of its phases."""

    neighbors: np.ndarray
    labels: np.ndarray
    seconds: dict[str, float]
    cpu: dict[str, float]


def y_step(planted: Planted, method: Method) -> Answer:
    """Search, classes, medoids and posets, and the refinement of Eq. 5-7."""
    from pml_posets.grouping.relaxed_assignment import RelaxedAssignment
    from pml_posets.grouping.surrogate import SurrogateGrouping
    from pml_posets.neighbors.nearest import search
    from pml_posets.posets import Posets

    features, sources = planted.features, planted.sources
    grouping = SurrogateGrouping(num_classes=planted.num_classes, mean_size=8.0, top_fraction=0.01)
    found: Any = None
    posets: Any = None
    refined: Any = None

    def do_search() -> None:
        nonlocal found
        found = search(features, NEIGHBORS, sources=sources, method=method)

    def do_grouping() -> None:
        grouping.fit(features, sources=sources, neighbors=found)

    def do_assignment() -> None:
        nonlocal refined
        refined = RelaxedAssignment().fit(features, grouping.labels_, sources=sources, neighbors=found)

    def do_posets() -> None:
        nonlocal posets
        options: dict[str, Any] = {"sources": sources, "neighbors": found, "method": method}
        posets = Posets.build(features, refined.labels_, MOST_NEAREST, **options)

    phases = dict(zip(PHASES, (do_search, do_grouping, do_posets, do_assignment), strict=True))
    seconds, cpu = {}, {}
    for name in ("search", "grouping", "assignment", "posets"):
        wall, own = time.perf_counter(), time.process_time()
        phases[name]()
        seconds[name], cpu[name] = time.perf_counter() - wall, time.process_time() - own
    return Answer(found.indices, posets.labels, seconds, cpu)


def time_y_step(
    num_samples: int, num_dims: int, seed: int, repeats: int, methods: tuple[Method, ...], quiet: bool
) -> dict[str, dict[str, float]]:
    """Times and qualities of the floor and of each method, in turns; to be called in a process of its own.

    Returns:
        Method ("floor", "exact", "approximate") to its metrics.
    """
    import faiss
    from sklearn.metrics import adjusted_rand_score

    import pml_posets.grouping.relaxed_assignment
    import pml_posets.grouping.surrogate  # noqa: F401
    from pml_posets._memory import warn_if_short, y_step_bytes

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

    def step(method: Method) -> Callable[[], Any]:
        return lambda: answers.__setitem__(method, y_step(planted, method))

    things: dict[str, Callable[[], Any]] = {"floor": floor, **{method: step(method) for method in methods}}
    bar = tqdm(total=repeats * len(things), desc=f"y-step {num_samples} x {num_dims}", disable=quiet)
    with bar:
        for _ in range(repeats):
            for name, thing in things.items():
                bar.set_postfix_str(name)
                forget_peak()
                wall, cpu = time.perf_counter(), time.process_time()
                thing()
                times.add(name, time.perf_counter() - wall, time.process_time() - cpu)
                peaks[name] = max(peaks.get(name, 0), peak_bytes())
                bar.update()
    metrics: dict[str, dict[str, float]] = {}
    for name in things:
        row = {"seconds": times.seconds(name), "cpu_seconds": times.seconds(name, "cpu")}
        row["over_floor"] = times.ratio(name, "floor")
        row["over_floor_cpu"] = times.ratio(name, "floor", "cpu")
        row["peak_gib"] = peaks[name] / 2**30
        row["peak_over_features"] = peaks[name] / planted.features.nbytes
        metrics[name] = row
    for name, answer in answers.items():
        row = metrics[name]
        row |= {f"seconds_{phase}": answer.seconds[phase] for phase in PHASES}
        row["classes"] = float(answer.labels.max() + 1)
        row["assigned"] = float((answer.labels >= 0).mean())
        both = (answer.labels >= 0) & (planted.postures >= 0)
        row["purity"] = _purity(answer.labels[both], planted.postures[both])
        if name == "approximate" and "exact" in answers:
            exact = answers["exact"]
            row["times_faster"] = times.ratio("exact", name)
            row["times_faster_cpu"] = times.ratio("exact", name, "cpu")
            row["times_faster_search"] = exact.seconds["search"] / answer.seconds["search"]
            row["recall_at_10"] = recall(answer.neighbors, exact.neighbors, 10)
            row["ari"] = float(adjusted_rand_score(_singletons(exact.labels), _singletons(answer.labels)))
    return metrics


def recall(found: np.ndarray, exact: np.ndarray, k: int) -> float:
    """Mean share of each row's first k exact neighbours that are among the k found."""
    k = min(k, exact.shape[1])
    same = (found[:, :k, None] == exact[:, None, :k]) & (exact[:, None, :k] >= 0)
    return float(same.sum() / max(1, int((exact[:, :k] >= 0).sum())))


def _singletons(labels: np.ndarray) -> np.ndarray:
    """Unassigned samples, each a class of its own."""
    free = labels < 0
    return np.where(free, labels.max() + 1 + np.cumsum(free), labels)


def _purity(labels: np.ndarray, truth: np.ndarray) -> float:
    """Share of the samples that have the posture most frequent in their class."""
    if not labels.size:
        return float("nan")
    pairs, counts = np.unique(np.stack([labels, truth], 1), axis=0, return_counts=True)
    most = np.zeros(labels.max() + 1)
    np.maximum.at(most, pairs[:, 0], counts)
    return float(most.sum() / labels.size)


def time_rival(name: str, num_samples: int, num_dims: int, seed: int) -> dict[str, float]:
    """Seconds of another clustering on the same features; to be called in a process of its own."""
    planted = plant(num_samples, num_dims, seed)
    features, wall = planted.features, time.perf_counter()
    if name == "agglomerative":
        from sklearn.cluster import AgglomerativeClustering

        labels = AgglomerativeClustering(planted.num_classes, linkage="average").fit_predict(features)
    elif name == "hdbscan":
        from sklearn.cluster import HDBSCAN

        labels = HDBSCAN(min_cluster_size=3, copy=True).fit_predict(features)
    else:
        from pml_posets.grouping.kmeans import KMeansGrouping

        labels = KMeansGrouping(planted.num_classes, random_state=seed).fit_predict(features)
    seconds = time.perf_counter() - wall
    both = (labels >= 0) & (planted.postures >= 0)
    return {
        "seconds": seconds,
        "peak_gib": peak_bytes() / 2**30,
        "peak_over_features": peak_bytes() / features.nbytes,
        "classes": float(labels.max() + 1),
        "purity": _purity(labels[both], planted.postures[both]),
    }
