"""Batches of a run, each sample with its seed (what batches hold is tested with the sampler)."""

from functools import partial

import numpy as np
import pytest
import torch

from pml_posets.data.datasets import IndexedDataset
from pml_posets.samplers._batches import SeededBatches, seeded_collate
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


def test_a_random_collate_fn_draws_by_the_seeds_of_the_batch_alone(sampler):
    def noisy(items):
        return torch.rand(len(items)), np.random.rand(), torch.tensor([index for _, index in items])  # noqa: NPY002

    images = IndexedDataset(list(torch.zeros(20, 1, 2, 2)))

    def batches():
        keys = SeededBatches(sampler, (0, 1), 0, 3)
        return list(
            torch.utils.data.DataLoader(images, batch_sampler=keys, collate_fn=partial(seeded_collate, noisy))
        )

    one = batches()
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    for (a, b, c), (d, e, f) in zip(one, batches(), strict=True):
        assert b == e
        assert torch.equal(a, d)
        assert torch.equal(c, f)
    assert len({b for _, b, _ in one}) == 3
    assert seeded_collate(len, [1, 2]) == 2  # without seeds, as the trial of a batch
