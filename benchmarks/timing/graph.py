"""The y-step on a sparse graph of a size that no search was made for here.

What is simulated is the search: each sample's list of neighbors is drawn, its class mates first among other
samples at random, and their distances are measured. What is run is the library's own: radii, growth, merging,
labels, medoids and the relaxed assignment, on features of a few dimensions. So the time of grouping is that
of today's code, less what longer features would add to each distance.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from tqdm.auto import tqdm

from benchmarks.timing.clock import forget_peak, peak_bytes
from benchmarks.timing.ystep import purity
from pml_posets.neighbors._measuring import squared_gaps
from pml_posets.neighbors.nearest import Neighbors

PER_CLASS = 8


def planted_graph(
    num_nodes: int, num_neighbors: int, num_dims: int, seed: int
) -> tuple[np.ndarray, np.ndarray, Neighbors]:
    """Features (N, D), classes (N,) with -1 for a tenth, and lists of neighbors (N, k), nearest first."""
    rng = np.random.default_rng(seed)
    mates = np.arange(num_nodes) // PER_CLASS
    num_classes = int(mates[-1]) + 1
    free = rng.random(num_classes) < 0.1
    features = rng.standard_normal((num_classes, num_dims), dtype=np.float32)[mates]
    features += 0.05 * rng.standard_normal(features.shape, dtype=np.float32)
    features[free[mates]] = rng.standard_normal((int(free[mates].sum()), num_dims), dtype=np.float32)
    index = np.empty((num_nodes, num_neighbors), np.int64)
    distances = np.empty(index.shape, np.float32)
    table = torch.from_numpy(features)
    own = min(PER_CLASS - 1, num_neighbors)
    for start in range(0, num_nodes, 1 << 16):
        rows = np.arange(start, min(start + (1 << 16), num_nodes))
        first = rows // PER_CLASS * PER_CLASS
        steps = (rows - first)[:, None] + 1 + np.arange(own)  # the others of the class, around in a ring
        index[rows, :own] = np.minimum(first[:, None] + steps % PER_CLASS, num_nodes - 1)
        spread = rng.integers(1, num_nodes // (num_neighbors + 1) + 1, (len(rows), num_neighbors - own))
        index[rows, own:] = (first[:, None] + PER_CLASS + np.cumsum(spread, axis=1)) % num_nodes
        index[rows] = np.where(
            index[rows] == rows[:, None], (rows[:, None] + PER_CLASS) % num_nodes, index[rows]
        )
        found = squared_gaps(table, table[rows], torch.from_numpy(index[rows])).sqrt().numpy()
        order = np.argsort(found, axis=1, kind="stable")
        index[rows] = np.take_along_axis(index[rows], order, 1)
        distances[rows] = np.take_along_axis(found, order, 1)
    return features, np.where(free[mates], -1, mates), Neighbors(index, distances)


def time_graph(num_nodes: int, num_neighbors: int, num_dims: int, seed: int, quiet: bool) -> dict[str, float]:
    """Seconds, memory and correctness of the y-step on a planted graph; in a process of its own."""
    from pml_posets.grouping.relaxed_assignment import RelaxedAssignment
    from pml_posets.grouping.surrogate import SurrogateGrouping
    from pml_posets.posets import medoids

    with tqdm(total=4, desc=f"graph of {num_nodes}", disable=quiet) as bar:
        features, classes, neighbors = planted_graph(num_nodes, num_neighbors, num_dims, seed)
        bar.update()
        forget_peak()
        top = max(PER_CLASS, num_neighbors // 4) / num_nodes
        grouping = SurrogateGrouping(
            top_fraction=top, max_size=16, max_neighbors=num_neighbors, min_neighbors=PER_CLASS
        )
        clock = [time.perf_counter()]
        grouping.fit(features, neighbors=neighbors)
        bar.update()
        clock.append(time.perf_counter())
        refined = RelaxedAssignment().fit(features, grouping.labels_, neighbors=neighbors)
        bar.update()
        clock.append(time.perf_counter())
        chosen = medoids(features, refined.labels_)
        bar.update()
        clock.append(time.perf_counter())
    grouped, relaxed, last = np.diff(clock).tolist()
    labels = refined.labels_
    planted = classes >= 0
    found = (labels >= 0) & planted
    return {
        "seconds_grouping": grouped,
        "seconds_assignment": relaxed,
        "seconds_medoids": last,
        "seconds_per_million": (grouped + relaxed + last) / num_nodes * 1e6,
        "classes": float(chosen.size),
        "planted_classes": float(np.unique(classes[planted]).size),
        "purity": purity(labels[found], classes[found]),
        "planted_found": float(found.sum() / planted.sum()),
        "peak_gib": peak_bytes() / 2**30,
    }
