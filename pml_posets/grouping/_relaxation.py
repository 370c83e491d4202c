"""The problem of the y-step: who may be in which class, its gradient, what a move gains, which are made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._classes import ClassMembers, oriented, row_sums
from ._groups import Space, blocks, size_ranges

_NOTHING = 1e-6  # a total affinity below which a mean similarity is not defined


def gain_of_leaving(
    similarity: np.ndarray, classes: np.ndarray, means: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """(M,) change of G if a sample of this mean similarity to the others left its class; 0 for class -1."""
    n, mean = sizes[classes].astype(float), means[classes]
    before = (1 + (n - 1) * mean) / n
    rest = (n * (n - 1) * mean - 2 * (n - 1) * similarity) / np.maximum((n - 1) * (n - 2), 1)  # the others'
    after = np.where(n > 1, (1 + (n - 2) * rest) / np.maximum(n - 1, 1), 0)
    return np.where(classes >= 0, after - before, 0)


def gain_of_joining(
    similarity: np.ndarray, classes: np.ndarray, means: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """(M,) change of G if a sample of this mean similarity to its members joined the class; 0 for -1."""
    n, mean = sizes[classes].astype(float), means[classes]
    before = (1 + (n - 1) * mean) / n
    after = (n * (1 + (n - 1) * mean) + 2 * n * similarity + 1) / (n + 1) ** 2
    return np.where(classes >= 0, after - before, 0)


def _weighted_sums(values: Tensor, weights: Tensor) -> Tensor:
    """(b, P) of (b, P, R) and (b, R); with the vector on the left, MKL is several times as fast."""
    return torch.bmm(weights[:, None], values.transpose(1, 2))[:, 0]


class Candidates(NamedTuple):
    """(N, K) int64 classes, -1 for none, a sample's own first; (N, K) bool how it would stand in each."""

    classes: np.ndarray
    flips: np.ndarray


class Pool(NamedTuple):
    """b classes with the P samples that may be in each, R of which are references."""

    classes: Tensor  # (b,) ids
    entries: Tensor  # (b, P) positions in flattened (N, K + 1) affinities: a sample and a candidate of it
    filled: Tensor  # (b, P) bool, whether the position holds an entry
    references: Tensor  # (b, R) positions in 0..P - 1
    near: Tensor  # (b, P, R) float32 similarities, 0 where they do not count
    counts: Tensor | None  # (b, P, R) float32, 1 where they do; None if all do but a sample's to itself
    referred: Tensor  # (b, P) float32, 1 for the samples that are references

    def pick(self, rows: Tensor) -> Pool:
        """Some of the classes."""
        parts: Any = (None if part is None else part[rows] for part in self)
        return Pool(*parts)

    def touched(self, affinity: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of its entries in flattened (N, K + 1) affinities, and the rows that they are in."""
        entries = self.entries[self.filled]
        rows = torch.zeros(len(affinity), dtype=torch.bool, device=entries.device)
        rows[entries // affinity.shape[1]] = True
        return entries, rows.nonzero()[:, 0]

    def gradient(self, affinity: Tensor) -> tuple[Tensor, Tensor]:
        """From (N, K + 1) affinities: s_ic (b, P), which is S_c where no reference counts, and S_c (b,)."""
        weight = affinity.view(-1)[self.entries] * self.filled  # (b, P)
        reference = weight.gather(1, self.references)  # (b, R)
        if self.counts is None:
            total = reference.sum(1, keepdim=True) - weight * self.referred
        else:
            total = _weighted_sums(self.counts, reference)
        sound = total > _NOTHING
        value = _weighted_sums(self.near, reference) / total.clamp_min(_NOTHING)
        known = weight * sound
        mean = (known * value).sum(1) / known.sum(1).clamp_min(_NOTHING)
        return torch.where(sound, value, mean[:, None]), mean


class Assigned(NamedTuple):
    """Labels (N,), how samples stand in their classes (N,), and what each class adds to G (C,)."""

    labels: np.ndarray
    flips: np.ndarray
    terms: np.ndarray


class Problem(NamedTuple):
    """Features, sources and similarity, which all rounds share."""

    features: np.ndarray
    mirrored: np.ndarray | None
    codes: np.ndarray | None
    space: Space

    def terms(self, labels: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """(C,) float64, what each class adds to the exact G of Eq. 7; C is the highest label + 1."""
        members = ClassMembers.of(labels)
        means = np.zeros(members.sizes.size)
        for classes, block in members.blocks(self.features.shape[1]):
            rows = oriented(self.features, self.mirrored, flips, block.reshape(-1))
            sums = row_sums(torch.from_numpy(rows.reshape(*block.shape, -1)), self.space.scale).sum(dim=1)
            means[classes] = sums.numpy() / block.shape[1] ** 2
        return means

    def changed_terms(self, labels: np.ndarray, flips: np.ndarray, old: Assigned) -> np.ndarray:
        """As `terms`, but of classes whose members have not changed those of `old`."""
        moved = labels != old.labels
        changed = np.zeros(old.terms.size + 1, bool)  # the last entry is that of unassigned samples
        changed[labels[moved]] = changed[old.labels[moved]] = True
        fresh = self.terms(np.where(changed[labels], labels, -1), flips)
        terms = old.terms.copy()
        terms[: fresh.size][changed[: fresh.size]] = fresh[changed[: fresh.size]]
        return terms

    def pools(self, candidates: Candidates, max_references: int, rng: np.random.Generator) -> Iterator[Pool]:
        """All classes, those with pools of about the same size together."""
        width = candidates.classes.shape[1]
        members = ClassMembers.of(candidates.classes.reshape(-1))  # of entries, not of samples
        sizes, place = members.sizes, self.space.table.device
        codes = np.arange(len(self.features)) if self.codes is None else self.codes
        for above, size in size_ranges(sizes, least=0):
            part = np.flatnonzero((sizes > above) & (sizes <= size))
            num_references = min(size, max_references)
            for block in blocks(part.size, 8 * size * num_references):
                classes = part[block]
                entry = members.starts[classes][:, None] + np.arange(size)  # (b, P)
                filled = np.arange(size) < sizes[classes][:, None]
                entry = members.order[np.minimum(entry, members.order.size - 1)]
                samples, slots = entry // width, entry % width
                flips = candidates.flips[samples, slots]
                references = np.broadcast_to(np.arange(size), entry.shape)
                if num_references < size:  # a random choice from the places that are referenced
                    lottery = np.where(filled, rng.random(entry.shape), 2.0)
                    references = np.sort(np.argsort(lottery, axis=1)[:, :num_references], axis=1)
                chosen, referenced = (np.take_along_axis(x, references, 1) for x in (samples, filled))
                others = () if num_references == size else (chosen, np.take_along_axis(flips, references, 1))
                gaps = self.space.distances(samples, flips, *others)
                apart = codes[samples][:, :, None] != codes[chosen][:, None, :]
                apart &= filled[:, :, None] & referenced[:, None, :]
                counts = torch.from_numpy(apart).to(place).float()
                referred = np.zeros(filled.shape, np.float32)
                np.put_along_axis(referred, references, referenced.astype(np.float32), 1)
                near = torch.exp(gaps / -self.space.scale).mul_(counts)
                arrays = (classes, samples * (width + 1) + slots, filled, np.array(references), referred)
                ids, entries, inside, which, refers = (torch.from_numpy(x).to(place) for x in arrays)
                kept = None if self.codes is None else counts
                yield Pool(ids, entries, inside, which, near, kept, refers)


class Moves(NamedTuple):
    """(M,) samples, the classes they go to (-1: out), how they stand there; best gain in G first."""

    samples: np.ndarray
    classes: np.ndarray
    flips: np.ndarray


def accept(problem: Problem, moves: Moves, old: Assigned, min_size: int) -> Assigned | None:
    """What as many of the moves, best first, as keep G from falling come to; None if none."""
    best, low, high = None, 0, moves.samples.size + 1  # low moves are allowed, high are not
    number = moves.samples.size
    while low < number < high:
        labels, flips = apply(problem, moves, number, old.labels, old.flips, min_size)
        terms = problem.changed_terms(labels, flips, old)
        if terms.sum() >= old.terms.sum():
            low, best = number, Assigned(labels, flips, terms)
        else:
            high = number
        if high - low <= max(1, moves.samples.size // 64):
            break
        number = (low + high) // 2
    return None if best is None or np.array_equal(best.labels, old.labels) else best


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
