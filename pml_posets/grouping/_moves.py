"""Moves of samples between classes: which of them the bounds on sizes and sources, and G, allow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._compactness import exact_compactness
from ._relaxation import Problem


@dataclass(frozen=True)
class Moves:
    """(M,) samples, the classes they go to (-1: out), how they stand there, their gain in G; best first."""

    samples: np.ndarray
    classes: np.ndarray
    flips: np.ndarray
    gain: np.ndarray


def accept(
    problem: Problem, moves: Moves, labels: np.ndarray, flips: np.ndarray, before: float, min_size: int
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Labels, flips and G after as many of the moves, best first, as the bounds and G allow; None if none.

    Args:
        before: G of the labels, below which it must not fall.
        min_size: members of a class at least.
    """
    best, low, high = None, 0, moves.samples.size + 1  # low moves are allowed, high are not
    number = moves.samples.size
    while low < number < high:
        tried = apply(problem, moves, number, labels, flips, min_size)
        objective = exact_compactness(
            problem.features, problem.mirrored, tried[1], tried[0], problem.space.scale
        )
        if objective >= before:
            low, best = number, (*tried, objective)
        else:
            high = number
        if high - low <= max(1, moves.samples.size // 64):
            break
        number = (low + high) // 2
    if best is None or np.array_equal(best[0], labels):
        return None
    return best


def apply(
    problem: Problem, moves: Moves, number: int, labels: np.ndarray, flips: np.ndarray, min_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and flips after the first moves, less those that the rules about size and sources forbid."""
    who, to = moves.samples[:number], moves.classes[:number]
    made = np.ones(number, bool)
    if problem.codes is not None:
        num_codes = int(problem.codes.max()) + 1
        assigned = np.flatnonzero(labels >= 0)
        taken = labels[assigned] * num_codes + problem.codes[assigned]
        wanted = to * num_codes + problem.codes[who]
        first = np.zeros(number, bool)
        first[np.unique(wanted, return_index=True)[1]] = True
        made &= (to < 0) | (first & ~np.isin(wanted, taken))
    old = labels[who]
    num_classes = int(labels.max(initial=-1)) + 1
    while True:
        sizes = np.bincount(labels[labels >= 0], minlength=num_classes)
        sizes -= np.bincount(old[made & (old >= 0)], minlength=num_classes)
        sizes += np.bincount(to[made & (to >= 0)], minlength=num_classes)
        lacking = np.maximum(min_size - sizes, 0)
        if not lacking.any():
            break
        leaving = np.flatnonzero(made & (old >= 0))[::-1]  # least gain first
        leaving = leaving[lacking[old[leaving]] > 0]
        leaving = leaving[np.argsort(old[leaving], kind="stable")]
        position = np.arange(leaving.size) - np.searchsorted(old[leaving], old[leaving])
        made[leaving[position < lacking[old[leaving]]]] = False
    new_labels, new_flips = labels.copy(), flips.copy()
    new_labels[who[made]], new_flips[who[made]] = to[made], moves.flips[:number][made]
    return new_labels, new_flips
