"""The relaxed problem of the y-step: who may be in which class, its gradient, and what a move gains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._classes import ClassMembers
from ._groups import Space, blocks, size_ranges

_NOTHING = 1e-6  # a total affinity below which a mean similarity is not defined


def gain_of_leaving(
    similarity: np.ndarray, classes: np.ndarray, means: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """(M,) change of G if a sample of this mean similarity to the others left its class; 0 for class -1."""
    n, mean = sizes[classes].astype(float), means[classes]
    before = (1 + (n - 1) * mean) / n
    rest = (n * (n - 1) * mean - 2 * (n - 1) * similarity) / np.maximum(
        (n - 1) * (n - 2), 1
    )  # mean of the others
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


def batches(pool: Pool, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Positions of the pool's classes in a random order, `size` at a time."""
    order = rng.permutation(len(pool.classes))
    for first in range(0, order.size, size):
        yield order[first : first + size]


@dataclass(frozen=True)
class Candidates:
    """(N, K) int64 classes, -1 for none, a sample's own first; (N, K) bool how it would stand in each."""

    classes: np.ndarray
    flips: np.ndarray


@dataclass(frozen=True)
class Pool:
    """b classes with the P samples that may be in each, R of which are references.

    Args:
        classes: (b,) ids.
        entries: (b, P) positions in flattened (N, K + 1) affinities: which sample, and which candidate of it.
        filled: (b, P) bool, whether the position holds an entry.
        references: (b, R) positions in 0..P-1.
        near: (b, P, R) float32 similarities, 0 where they do not count.
        counts: (b, P, R) float32, 1 where they do; None if all do but a sample's to itself.
        referred: (b, P) float32, 1 for the samples that are references.
    """

    classes: Tensor
    entries: Tensor
    filled: Tensor
    references: Tensor
    near: Tensor
    counts: Tensor | None
    referred: Tensor

    def pick(self, rows: Tensor) -> Pool:
        """Some of the classes."""
        if len(rows) == len(self.classes):
            return self
        counts = None if self.counts is None else self.counts[rows]
        parts = (self.classes, self.entries, self.filled, self.references, self.near)
        classes, entries, filled, references, near = (part[rows] for part in parts)
        return Pool(classes, entries, filled, references, near, counts, self.referred[rows])

    def gradient(self, affinity: Tensor) -> tuple[Tensor, Tensor]:
        """From (N, K + 1) affinities: s_ic (b, P), which is S_c where no reference counts, and S_c (b,)."""
        weight = affinity.view(-1)[self.entries] * self.filled  # (b, P)
        reference = weight.gather(1, self.references)  # (b, R)
        if self.counts is None:
            total = reference.sum(1, keepdim=True) - weight * self.referred
        else:
            total = torch.bmm(self.counts, reference[:, :, None])[:, :, 0]
        sound = total > _NOTHING
        value = torch.bmm(self.near, reference[:, :, None])[:, :, 0] / total.clamp_min(_NOTHING)
        known = weight * sound
        mean = (known * value).sum(1) / known.sum(1).clamp_min(_NOTHING)
        return torch.where(sound, value, mean[:, None]), mean


@dataclass(frozen=True)
class Problem:
    """Features, sources and similarity, which all rounds share."""

    features: np.ndarray
    mirrored: np.ndarray | None
    codes: np.ndarray | None
    space: Space

    def pools(self, candidates: Candidates, max_references: int, rng: np.random.Generator) -> Iterator[Pool]:
        """All classes, those with pools of about the same size together."""
        width = candidates.classes.shape[1]
        flat = candidates.classes.reshape(-1)
        members = ClassMembers.of(flat)  # of entries (sample, slot) instead of samples
        sizes = members.sizes
        place = self.space.table.device
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
                    chosen = np.take_along_axis(samples, references, 1)
                    chosen_flips = np.take_along_axis(flips, references, 1)
                    gaps = self.space.distances(samples, flips, chosen, chosen_flips)
                else:
                    chosen, gaps = samples, self.space.distances(samples, flips)
                referenced = np.take_along_axis(filled, references, 1)  # (b, R)
                if self.codes is None:
                    apart = samples[:, :, None] != chosen[:, None, :]
                else:
                    apart = self.codes[samples][:, :, None] != self.codes[chosen][:, None, :]
                counts = (
                    torch.from_numpy(apart & filled[:, :, None] & referenced[:, None, :]).to(place).float()
                )
                referred = np.zeros(filled.shape, np.float32)
                np.put_along_axis(referred, references, referenced.astype(np.float32), 1)
                arrays = (classes, samples * (width + 1) + slots, filled, np.array(references), referred)
                parts = [torch.from_numpy(array).to(place) for array in arrays]
                near = torch.exp(gaps / -self.space.scale).mul_(counts)
                kept = None if self.codes is None else counts
                yield Pool(parts[0], parts[1], parts[2], parts[3], near, kept, parts[4])
