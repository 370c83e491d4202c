"""Batches of a run, each sample with its seed (what batches hold is tested with the sampler)."""

import numpy as np
import pytest

from pml_posets.samplers._batches import SeededBatches
from pml_posets.samplers.pseudo_label import GivenLabels, PseudoLabelSampler


@pytest.fixture
def sampler():
    features = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    return PseudoLabelSampler(features, 5, grouping=GivenLabels(np.arange(20) % 4 - 1))


def test_any_stretch_is_a_part_of_the_whole(sampler):
    whole = list(SeededBatches(sampler, (0, 1), 0, 11))
    assert len(whole) == 11
    for first in range(11):
        for last in (first, first + 1, 11):
            part = SeededBatches(sampler, (0, 1), first, last)
            assert len(part) == last - first
            assert list(part) == whole[first:last]


def test_indices_are_the_samplers_and_seeds_all_differ(sampler):
    pairs = list(SeededBatches(sampler, (0, 1), 0, 8))
    sampler.set_epoch(0)
    expected = list(sampler) + list(sampler)
    assert [[index for index, _ in batch] for batch in pairs] == expected
    seeds = [seed for batch in pairs for _, seed in batch]
    assert len(set(seeds)) == 40
    other = [seed for batch in SeededBatches(sampler, (1, 1), 0, 8) for _, seed in batch]
    assert not set(seeds) & set(other)
