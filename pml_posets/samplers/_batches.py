"""What a batch holds: unassigned samples together with the classes whose posets hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler

from .._random import derive_seeds, seeded
from ..posets import Posets


class PosetBatches:
    """Draws batches of `size` samples from posets; the rules are those of `PseudoLabelSampler`.

    A class is at home in a batch, if its medoid and other members are in it, or alone, if only its medoid is.
    """

    def __init__(
        self,
        posets: Posets,
        size: int,
        samples_per_class: int,
        unassigned_fraction: float,
        random_fraction: float = 0.0,
    ) -> None:
        self.posets = posets
        self.num_random = int(random_fraction * size + 0.5) if posets.num_classes else size
        self.size = size = size - self.num_random  # by the rules
        self.samples_per_class = samples_per_class
        self.nearest = posets.nearest_classes
        around = self.nearest[posets.unassigned]
        self.idle = np.setdiff1d(np.arange(posets.num_classes), around)  # in no poset
        free = posets.unassigned.size * (1 + posets.num_nearest)  # slots they could take at most
        self.num_free = min(int(unassigned_fraction * size + 0.5), free)
        rest = size - self.num_free
        self.num_homes = min(posets.num_classes, max(rest // samples_per_class, int(rest > 0)))

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """(size,) dataset indices, in random order."""
        ruled = self._by_rules(rng) if self.size else np.empty(0, np.int64)
        if not self.num_random:
            return ruled
        drawn = _choose(rng, np.arange(self.posets.num_samples), self.num_random + ruled.size)
        fresh = drawn[~np.isin(drawn, ruled)][: self.num_random]
        again = self.num_random - fresh.size  # the batch holds nearly everything: repeat some
        return rng.permutation(np.concatenate([ruled, fresh, _choose(rng, ruled, again)]))

    def _by_rules(self, rng: np.random.Generator) -> np.ndarray:
        homes, seeds = self._homes(rng)
        unassigned, lone = self._unassigned(rng, homes, seeds)
        members = self._members(rng, homes, lone, self.size - len(unassigned))
        return rng.permutation(np.concatenate([np.asarray(unassigned, np.int64), *members]))

    def _homes(self, rng: np.random.Generator) -> tuple[list[int], np.ndarray]:
        """Home classes: some that no poset leads to, those of a few unassigned samples, any others."""
        num_idle = rng.binomial(self.num_homes, self.idle.size / self.posets.num_classes)
        homes = dict.fromkeys(_choose(rng, self.idle, num_idle).tolist())
        num_seeds = max((self.num_homes - len(homes)) // self.posets.num_nearest, 1)
        seeds = _choose(rng, self.posets.unassigned, min(num_seeds, self.num_free))
        for c in self.nearest[seeds].reshape(-1).tolist():
            if c >= 0 and len(homes) < self.num_homes:
                homes[c] = None
        homes.update(dict.fromkeys(self._others(rng, homes, self.num_homes - len(homes))))
        return list(homes), seeds

    def _unassigned(
        self, rng: np.random.Generator, homes: list[int], seeds: np.ndarray
    ) -> tuple[list[int], list[int]]:
        """Unassigned samples for the batch, and the classes that must join by their medoid for them."""
        chosen: dict[int, None] = {}
        present, room = set(homes), self.num_free
        lone: list[int] = []
        for candidates in self._candidates(rng, homes, seeds):
            for index in candidates.tolist():
                if room <= 0:
                    return list(chosen), lone
                needed = [c for c in self.nearest[index].tolist() if c >= 0 and c not in present]
                if index in chosen or 1 + len(needed) > room:
                    continue
                chosen[index] = None
                present.update(needed)
                lone += needed
                room -= 1 + len(needed)
        return list(chosen), lone

    def _candidates(
        self, rng: np.random.Generator, homes: list[int], seeds: np.ndarray
    ) -> Iterable[np.ndarray]:
        yield seeds
        if not self.num_free:
            return
        limit = 8 * self.num_free  # a draw from a poset of thousands
        around = [_choose(rng, self.posets.poset(c), limit) for c in homes]
        pool = rng.permutation(np.unique(np.concatenate([seeds, *around])))
        nearest = self.nearest[pool]
        covered = (np.isin(nearest, homes) | (nearest < 0)).all(axis=1)
        yield pool[covered]
        yield pool[~covered]
        yield _choose(rng, self.posets.unassigned, 4 * self.num_free)

    def _members(
        self, rng: np.random.Generator, homes: list[int], lone: list[int], total: int
    ) -> Iterator[np.ndarray]:
        """`total` members of the classes: the medoid of each, then random others, `homes` before `lone`."""
        sizes, per_class = self.posets.sizes, self.samples_per_class
        full = list(homes)
        room = total - len(lone) - int(np.minimum(sizes[full], per_class).sum())
        for c in lone if room > 0 else []:
            if room > 0 and sizes[c] > 1 and per_class > 1:
                full.append(c)
                room -= min(int(sizes[c]), per_class) - 1
        for c in self._others(rng, {*homes, *lone}, room):
            if room > 0:
                full.append(c)
                room -= min(int(sizes[c]), per_class)
        if room > 0:  # every class is in the batch
            full = list(dict.fromkeys([*full, *lone]))
        only = [c for c in lone if c not in set(full)]
        quotas = _quotas(sizes[full], per_class, total - len(only))
        if only:
            yield self.posets.medoids[only]
        for c, quota in zip(full, quotas.tolist(), strict=True):
            yield self._of_class(rng, c, quota)

    def _of_class(self, rng: np.random.Generator, c: int, quota: int) -> np.ndarray:
        members, medoid = self.posets.members(c), self.posets.medoids[c]
        others = members[members != medoid]
        drawn = rng.choice(others, min(max(quota - 1, 0), others.size), replace=False)
        return np.resize(np.concatenate([[medoid], drawn]), quota)

    def _others(self, rng: np.random.Generator, taken: Iterable[int], count: int) -> list[int]:
        """Up to `count` random classes that are not taken."""
        if count <= 0:
            return []
        taken = set(taken)
        drawn = _choose(rng, np.arange(self.posets.num_classes), count + len(taken)).tolist()
        return [c for c in drawn if c not in taken][:count]


def _quotas(sizes: np.ndarray, per_class: int, total: int) -> np.ndarray:
    """(c,) how many of each class: `per_class` first, then evenly more of them, then evenly repeats."""
    quotas = np.minimum(sizes, per_class)
    if sizes.size and quotas.sum() > total:  # only the last class can be over
        quotas[-1] -= quotas.sum() - total
    limit = sizes
    while sizes.size and (left := total - int(quotas.sum())) > 0:
        open_ = np.flatnonzero(quotas < limit)
        if not open_.size:
            limit = np.full_like(sizes, total)  # everything is in the batch: repeat it
            continue
        step = max(1, left // open_.size)
        quotas[open_[:left]] = np.minimum(quotas[open_[:left]] + step, limit[open_[:left]])
    return quotas


def _choose(rng: np.random.Generator, values: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` different values at random."""
    return rng.choice(values, min(count, values.size), replace=False) if values.size else values


class SeededBatches(BatchSampler):
    """The batches `first` to `last` - 1 of a run, each index with the seed of its sample's augmentation.

    Iteration i has batch i % E of epoch i // E, E the sampler's length; no earlier iteration need have run.
    The pairs (index, seed), with `seeds` and the iteration behind the latter, are keys of `IndexedDataset`.
    `positions` picks samples of each batch; None: all.
    """

    def __init__(
        self, sampler: Any, seeds: tuple[int, ...], first: int, last: int, positions: Any = None
    ) -> None:
        self.positions = positions
        self.source, self.seeds, self.first, self.last = sampler, seeds, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Any]]:
        length = len(self.source)
        batches: Iterator[list[int]] = iter(())
        for iteration in range(self.first, self.last):
            if iteration == self.first or iteration % length == 0:
                self.source.set_epoch(iteration // length)
                batches = islice(iter(self.source), iteration % length, None)
            batch = next(batches)
            seeds = derive_seeds(*self.seeds, iteration, count=len(batch))
            keys = list(zip(batch, seeds, strict=True))
            yield keys if self.positions is None else [keys[p] for p in self.positions]


def seeded_collate(collate: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    """What a `collate_fn` makes, its randomness a function of the seeds of the batch, in any process."""
    seeds = getattr(items, "seeds", None)
    if seeds is None:
        return collate(items)
    with seeded(derive_seeds(*seeds)[0], accelerators=False):
        return collate(items)
