"""The sampler of queries and their neighbours against plain loops, and in a run."""

import numpy as np
import pytest
import torch
import trainings
from pytorch_metric_learning.losses import NTXentLoss
from refusals import refuses_each

from pml_posets.losses.pseudo_label import PseudoLabelLoss
from pml_posets.samplers.neighbor_batches import NeighborBatches
from pml_posets.samplers.pseudo_label import GivenLabels


def features(seed=0, count=30, dims=4):
    return np.random.default_rng(seed).normal(size=(count, dims)).astype(np.float32)


def sampler(**options):
    options = {"batch_size": 24, "samples_per_query": 3, "views": 2, **options}
    return NeighborBatches(features(), **options)


def loop_table(x, k):
    x = x.astype(float)
    table = []
    for i in range(len(x)):
        distances = [(-1 if i == j else ((x[i] - x[j]) ** 2).sum(), j) for j in range(len(x))]
        table.append([j for _, j in sorted(distances)[:k]])
    return table


@pytest.mark.parametrize("k", [1, 2, 5, 30])
def test_the_table_by_plain_loops(k):
    made = NeighborBatches(features(), batch_size=30, samples_per_query=k, views=1)
    assert made.neighbors.tolist() == loop_table(features(), k)
    assert made.neighbors.dtype == np.int64


def test_a_batch_is_queries_their_neighbours_and_views():
    made = sampler()
    table = made.neighbors.tolist()
    assert (made.num_queries, len(made)) == (4, 30 * 2 // 24)
    batches = list(made)
    assert len(batches) == len(made)
    for batch in batches:
        assert len(batch) == 24
        assert batch[:12] == batch[12:]
        for start in range(0, 12, 3):
            assert batch[start : start + 3] == table[batch[start]]


def test_no_sample_is_a_query_twice_until_all_were():
    made = sampler(num_batches=15)
    queries = [i for batch in made for i in batch[:12:3]]
    assert len(queries) == 60
    assert sorted(queries[:30]) == sorted(queries[30:]) == list(range(30))
    assert queries[:30] != queries[30:]


def test_batches_hang_on_seed_round_and_epoch():
    first = sampler()
    assert list(first) == list(sampler())
    second = list(first)  # the next epoch
    assert second != list(sampler())
    first.set_epoch(1)
    assert list(first) == second
    assert list(sampler(seed=1)) != list(sampler())
    first.regroup(features())
    first.set_epoch(1)
    assert list(first) != second  # the same table, the next round


def test_a_round_makes_a_new_table():
    made = sampler()
    running = iter(made)
    first = next(running)
    before = made.neighbors
    posets = made.regroup(features(1))
    assert posets is made.posets
    assert posets.round == 1
    assert made.neighbors.tolist() == loop_table(features(1), 3)
    for batch in running:  # a pass under way goes on with the old one
        assert batch[:3] == before[batch[0]].tolist()
    assert len(first) == 24


def test_a_failed_round_leaves_everything_as_it_was():
    made = sampler()
    table, posets = made.neighbors, made.posets
    with pytest.raises(ValueError, match="features must have 30 rows, one a sample, got 20"):
        made.regroup(features(count=20))
    assert made.neighbors is table
    assert made.posets is posets


def test_without_a_grouping_nothing_is_assigned():
    made = sampler()
    assert made.posets.num_classes == 0
    assert (made.labels == -1).all()
    grouped = sampler(grouping=GivenLabels([0, 1, 2] * 10))
    assert grouped.posets.num_classes == 3


def test_state_of_another_object():
    made = sampler()
    assert made.posets.round == 0
    made.regroup(features(1))
    made.set_epoch(5)
    other = sampler()
    other.load_state_dict(made.state_dict())
    assert other.epoch == 5
    assert other.posets.round == 1
    assert np.array_equal(other.neighbors, made.neighbors)
    assert list(other) == list(made)


def without(name):
    return {key: value for key, value in sampler().state_dict().items() if key != name}


test_states_that_do_not_fit = refuses_each(
    sampler().load_state_dict,
    (sampler(samples_per_query=4).state_dict(), r"belongs to 30 samples with 4 to a query.* has 30 with 3"),
    (without("neighbors"), "no state of NeighborBatches"),
    (without("posets"), "no state of a PseudoLabelSampler"),
    error=ValueError,
)


test_bad_options = refuses_each(
    lambda options: sampler(**options),
    ({"samples_per_query": 31}, "samples_per_query must be at most the number of samples, got 31 for 30"),
    ({"samples_per_query": 5}, "multiple of samples_per_query x views = 5 x 2, got 24"),
    ({"samples_per_query": 0}, "samples_per_query must be at least 1"),
    ({"batch_size": 66}, "a batch must not be larger than the dataset, got batch_size=66"),
    ({"method": "faiss"}, "method must be 'exact' or 'approximate', got 'faiss'"),
    error=ValueError,
)


def test_rounds_of_training_make_new_tables():
    data = [torch.from_numpy(row) for row in features()]
    loss = PseudoLabelLoss(NTXentLoss(), unassigned="own")
    joint = trainings.make(
        data, torch.nn.Linear(4, 3), None, sampler=sampler(), loss_funcs={"metric_loss": loss}
    )
    joint.train()
    assert joint.sampler.posets.round == 1
    assert not np.array_equal(joint.sampler.neighbors, sampler().neighbors)
