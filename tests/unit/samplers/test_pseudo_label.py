"""Pseudo-labels and the batches drawn from them."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.common_functions import get_train_dataloader
from sklearn.cluster import HDBSCAN, KMeans

from pml_posets.data.datasets import IndexedDataset
from pml_posets.posets import Posets
from pml_posets.samplers._batches import PosetBatches
from pml_posets.samplers.pseudo_label import GivenLabels, PseudoLabelSampler


def features_of(num_samples, dim=6, seed=0):
    return np.random.default_rng(seed).normal(size=(num_samples, dim)).astype(np.float32)


def sampler_of(labels, batch_size, features=None, **options):
    features = features_of(len(labels)) if features is None else features
    return PseudoLabelSampler(features, batch_size, **{"grouping": GivenLabels(labels), **options})


def random_case(seed):
    """Labels and options, from no class to as many classes as samples, few to many unassigned."""
    rng = np.random.default_rng(seed)
    num_samples = int(rng.integers(2, 200))
    most = int(rng.choice([1, 2, 5, num_samples]))
    labels = rng.integers(0, most, num_samples)
    labels[rng.random(num_samples) < rng.choice([0.0, 0.02, 0.5, 0.9, 1.0])] = -1
    options = {
        "batch_size": int(rng.integers(1, num_samples + 1)),
        "num_nearest": int(rng.integers(1, 6)),
        "samples_per_class": int(rng.integers(1, 7)),
        "unassigned_fraction": float(rng.choice([0.0, 0.3, 0.5, 0.8, 1.0])),
        "num_batches": 4,
        "seed": seed,
    }
    return labels, options


class Counting(GivenLabels):
    """Given labels that count how often they were asked for, and take every option."""

    def __init__(self, labels):
        super().__init__(labels)
        self.calls = []

    def fit_predict(self, features, sources=None, mirrored=None, labels=None):
        self.calls.append({"sources": sources, "mirrored": mirrored, "labels": labels})
        return super().fit_predict(features)


# --- Batches


@pytest.mark.parametrize("seed", range(60))
def test_what_always_holds_on_random_label_sets(seed):
    labels, options = random_case(seed)
    sampler = sampler_of(labels, **options)
    posets, size = sampler.posets, sampler.batch_size
    batches = list(sampler)
    assert len(batches) == len(sampler) == 4
    for batch in batches:
        assert len(batch) == size
        assert all(type(index) is int and 0 <= index < len(labels) for index in batch)
        present = set(batch)
        if not posets.num_classes:
            assert len(present) == size
            continue
        free = [index for index in batch if posets.labels[index] < 0]
        assert len(free) == len(set(free))  # never repeated
        for index in free:  # the medoids of all its nearest classes
            nearest = posets.nearest_classes[index]
            assert present.issuperset(posets.medoids[nearest[nearest >= 0]])
        classes = np.unique(posets.labels[batch])
        classes = classes[classes >= 0]
        assert present.issuperset(posets.medoids[classes])
        share = round(sampler.unassigned_fraction * size + 1e-9)
        assert len(free) <= share
        # What is repeated is so for want of members: then every member of every class is there.
        if len(present) < size:
            assert present.issuperset(np.flatnonzero(posets.labels >= 0))


def test_a_typical_batch_is_balanced():
    rng = np.random.default_rng(3)
    labels = np.concatenate([np.repeat(np.arange(100), 8), np.full(3200, -1)])
    sampler = sampler_of(rng.permutation(labels), batch_size=128)
    assert len(sampler) == 4000 // 128
    posets = sampler.posets
    for batch in sampler:
        assert len(set(batch)) == 128
        counts = np.bincount(posets.labels[batch] + 1, minlength=101)
        lone = (counts[1:] == 1).sum()
        assert (counts[1:] == 4).sum() >= 16  # (128 - 64) / 4 classes at home
        assert 40 <= counts[0] <= 64
        assert counts[0] + lone in (63, 64)  # both halves used up; the last slot may be too small


def test_members_are_drawn_evenly_over_an_epoch():
    labels = np.concatenate([np.repeat(np.arange(30), 7), np.full(200, -1)])
    sampler = sampler_of(labels, batch_size=60, num_batches=200)
    seen = np.bincount(np.concatenate(list(sampler)), minlength=410)
    assert seen.min() > 0  # every sample comes
    others = np.setdiff1d(np.arange(210), sampler.medoids)
    assert seen[sampler.medoids].mean() > 2 * seen[others].mean()
    members = seen[others].reshape(30, 6)
    assert (members.std(axis=1) < 0.35 * members.mean(axis=1)).all()  # alike inside a class


def test_classes_in_no_poset_come_too():
    # Ten classes far from the one unassigned sample's two nearest.
    features = np.float32([*np.repeat(np.arange(12) * 100.0, 5), *[30.0] * 50])[:, None]
    labels = np.concatenate([np.repeat(np.arange(12), 5), np.full(50, -1)])
    sampler = sampler_of(labels, 20, features, num_batches=60)
    drawn = np.bincount(labels[np.concatenate(list(sampler))] + 1, minlength=13)
    assert (drawn[1:] >= 20).all()


def test_fully_assigned_is_classes_times_members():
    sampler = sampler_of(np.repeat(np.arange(40), 10), batch_size=32)
    for batch in sampler:
        assert sorted(np.bincount(sampler.labels[batch], minlength=40), reverse=True)[:9] == [4] * 8 + [0]


def test_very_few_classes():
    labels = np.full(100, -1)
    labels[:3], labels[50:53] = 0, 1
    sampler = sampler_of(labels, batch_size=64)
    for batch in sampler:
        counts = np.bincount(sampler.labels[batch] + 1)
        assert counts.tolist() == [32, 16, 16]  # members repeated evenly
        copies = np.bincount(batch, minlength=100)[sampler.labels >= 0]
        assert copies.min() == 5
        assert copies.max() == 6
    only = sampler_of(labels, batch_size=64, unassigned_fraction=0.0)
    assert all((only.labels[batch] >= 0).all() for batch in only)


def test_no_class_at_all_is_a_random_batch():
    first, second = list(sampler_of(np.full(20, -1), batch_size=8))
    assert len(set(first)) == len(set(second)) == 8
    assert first != second


def test_only_unassigned_brings_the_medoids_alone():
    labels = np.concatenate([np.repeat(np.arange(20), 5), np.full(400, -1)])
    sampler = sampler_of(labels, batch_size=50, unassigned_fraction=1.0, num_nearest=2)
    for batch in sampler:
        assigned = [index for index in batch if labels[index] >= 0]
        assert set(assigned) <= set(sampler.medoids)
        assert len(batch) - len(assigned) >= 30


def test_views_stand_one_after_another():
    labels = np.arange(40) % 5 - 1
    batches = list(sampler_of(labels, 24, views=3))
    single = list(sampler_of(labels, 8, num_batches=1))
    assert len(batches) == 1
    assert batches[0] == single[0] * 3
    small = sampler_of([-1, -1, -1], 6, views=2)  # each sample twice
    assert [sorted(batch) for batch in small] == [[0, 0, 1, 1, 2, 2]]


def test_posets_of_thousands_are_cut_down():
    labels = np.full(5000, -1)
    labels[:6] = np.repeat([0, 1, 2], 2)
    batches = PosetBatches(Posets.build(features_of(5000), labels), 16, 2, 0.5)
    seen = {index for seed in range(100) for index in batches.draw(np.random.default_rng(seed)).tolist()}
    assert len(seen) > 600  # still spread over all of them


# --- Order, epochs, state


def test_order_is_a_function_of_seed_round_and_epoch():
    labels, features = np.arange(60) % 7 - 1, features_of(60)
    first, second = sampler_of(labels, 16), sampler_of(labels, 16)
    epochs = [list(first) for _ in range(3)]
    assert epochs[0] != epochs[1]
    second.set_epoch(2)
    assert list(second) == epochs[2]
    assert list(sampler_of(labels, 16, seed=1)) != epochs[0]
    second.regroup(features)  # the same groups, another round
    second.set_epoch(0)
    assert second.labels.tolist() == first.labels.tolist()
    assert list(second) != epochs[0]


def test_state_goes_into_a_new_sampler_bit_for_bit():
    labels = np.arange(60) % 7 - 1
    first = sampler_of(labels, 16)
    list(first)
    first.regroup(features_of(60, seed=5))
    state = first.state_dict()
    provider = Counting(labels)
    second = PseudoLabelSampler(features_of(60), 16, grouping=provider)
    second.load_state_dict(state)
    assert provider.calls == []  # nothing was grouped again
    assert second.posets.equals(first.posets)
    assert second.posets.round == 1
    assert list(second) == list(first)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda state: {}, "no state of a PseudoLabelSampler"),
        (lambda state: {**state, "posets": {**state["posets"], "labels": None}}, "no state of"),
        (lambda state: sampler_of([0, 0, 1, 1, -1], 3).state_dict(), "belongs to 5 samples"),
        (lambda state: sampler_of([0] * 20, 3, num_nearest=1).state_dict(), "with 1 nearest classes"),
    ],
)
def test_bad_state(change, text):
    sampler = sampler_of([0, 1] * 10, 4)
    before = sampler.posets
    with pytest.raises(ValueError, match=text):
        sampler.load_state_dict(change(sampler.state_dict()))
    assert sampler.posets is before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_in_pmls_data_loader(num_workers):
    sampler = sampler_of(np.arange(40) % 5 - 1, 8)
    expected = list(sampler)
    sampler.set_epoch(0)
    data = IndexedDataset([torch.full((1, 2, 2), float(i)) for i in range(40)])
    loader = get_train_dataloader(data, 999, sampler, num_workers, None)
    served = [(images[:, 0, 0, 0], indices) for images, indices in loader]
    assert [indices.tolist() for _, indices in served] == expected
    assert all(torch.equal(images, indices.float()) for images, indices in served)
    assert len(loader) == len(sampler) == 5


# --- Grouping


def test_grouping_is_made_once_when_first_asked_for():
    provider = Counting([0, 0, 1, 1, -1])
    sampler = PseudoLabelSampler(features_of(5), 4, grouping=provider)
    assert provider.calls == []
    assert sampler.posets.round == 0
    assert sampler.labels.tolist() == [0, 0, 1, 1, -1]
    assert sampler.medoids.tolist() == [0, 2]
    assert len(provider.calls) == 1


def test_providers_get_the_options_they_name():
    sources, mirrored = list("aabbc"), features_of(5, seed=9)
    provider = Counting([0, 0, 1, 1, -1])
    sampler = PseudoLabelSampler(features_of(5), 4, grouping=provider, sources=sources, mirrored=mirrored)
    assert sampler.posets.num_classes == 2
    sampler.regroup(features_of(5, seed=2))
    first, second = provider.calls
    assert first["sources"].tolist() == second["sources"].tolist() == sources
    assert np.array_equal(first["mirrored"], mirrored)
    assert first["labels"] is second["mirrored"] is None
    assert second["labels"].tolist() == [0, 0, 1, 1, -1]  # those of the round before


@pytest.mark.parametrize(
    "clusterer", [KMeans(n_clusters=4, n_init=1), HDBSCAN(min_cluster_size=4, copy=True)]
)
def test_any_scikit_learn_clusterer(clusterer):
    blobs = (features_of(80, 3) + 20 * np.eye(4, 3)[np.arange(80) % 4]).astype(np.float32)
    first = PseudoLabelSampler(blobs, 16, grouping=clusterer)
    assert first.posets.num_classes == 4
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    again = PseudoLabelSampler(blobs, 16, grouping=clusterer).labels
    assert np.array_equal(first.labels, again)  # the sampler's seed decides, not numpy's global generator
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


class Halving:
    """An assignment that leaves every second sample unassigned, and remembers what it started from."""

    def __init__(self):
        self.starts = []

    def fit_predict(self, features, labels, mirrored=None):
        self.starts.append(labels)
        labels = labels.copy()
        labels[np.arange(len(labels)) % 2 == len(self.starts) % 2] = -1
        return labels


def test_assignment_refines_and_warm_start_skips_the_grouping():
    labels, halved = np.repeat([0, 1, 2], 4), [0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1]
    provider, assignment = Counting(labels), Halving()
    sampler = sampler_of(labels, 4, grouping=provider, assignment=assignment)
    assert sampler.labels.tolist() == halved
    sampler.regroup(features_of(12))
    assert assignment.starts[1].tolist() == halved
    assert len(provider.calls) == 1
    assert sampler.posets.num_classes == 0
    assert sampler.posets.round == 1
    anew = sampler_of(labels, 4, grouping=provider, assignment=Halving(), warm_start=False)
    anew.regroup(features_of(12))
    anew.regroup(features_of(12))
    assert len(provider.calls) == 3
    assert anew.assignment.starts[1].tolist() == labels.tolist()


class Flipping(GivenLabels):
    """Given labels whose second sample stands mirrored."""

    def fit_predict(self, features, mirrored=None):
        self.flips_ = np.arange(len(features)) == 1
        return super().fit_predict(features)


class Turning:
    """An assignment that mirrors every sample once more."""

    def fit_predict(self, features, labels, mirrored=None, flips=None):
        self.given = flips
        self.flips_ = np.ones(len(features), bool) if flips is None else ~flips
        return labels


@pytest.mark.parametrize("assignment", [None, Turning()])
def test_flips_of_the_provider_and_then_of_the_assignment_reach_the_posets(assignment):
    mirrored, grouping = features_of(6, seed=1), Flipping([0, 0, 0, 1, 1, 1])
    sampler = PseudoLabelSampler(
        features_of(6), 3, grouping=grouping, assignment=assignment, mirrored=mirrored
    )
    one = [False, True, False, False, False, False]
    assert sampler.uses_mirrored
    assert (sampler.posets.flips ^ (assignment is not None)).tolist() == one
    if assignment is not None:
        assert assignment.given.tolist() == one
    sampler.regroup(features_of(6), mirrored)
    assert sampler.posets.flips.tolist() == one  # turned over twice
    sampler.regroup(features_of(6))  # without mirrored features there are no flips
    assert not sampler.posets.flips.any()
    assert assignment is None or assignment.given is None


def test_posets_heed_the_sources():
    features = np.float32([[0.0], [0.1], [1.0], [1.1], [0.2]])
    for sources, nearest in ((None, 0), ([7, 7, 8, 8, 7], 1)):
        sampler = sampler_of([0, 0, 1, 1, -1], 4, features, num_nearest=1, sources=sources)
        assert sampler.posets.nearest_classes[4].tolist() == [nearest]


# --- Bad input


class Bad:
    """A provider of these labels, as they are."""

    def __init__(self, *labels):
        self.labels = np.array(labels)

    def fit_predict(self, features):
        return self.labels


BAD = [
    ({"features": np.full((6, 2), np.nan)}, ValueError, "finite"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ({"batch_size": 8}, ValueError, "batch_size=8 for 6 samples"),
    ({"batch_size": 2.0}, TypeError, "batch_size must be an integer"),
    ({"views": 2}, ValueError, "multiple of views=2, got 3"),
    ({"views": 0}, ValueError, "views must be at least 1"),
    ({"num_nearest": 0}, ValueError, "num_nearest must be at least 1"),
    ({"samples_per_class": 0}, ValueError, "samples_per_class"),
    ({"unassigned_fraction": 1.5}, ValueError, r"in \[0, 1\], got 1\.5"),
    ({"random_fraction": np.nan}, ValueError, r"random_fraction must be in \[0, 1\]"),
    ({"num_batches": 0}, ValueError, "num_batches"),
    ({"seed": -1}, ValueError, "seed"),
    ({"sources": [1, 2]}, ValueError, r"sources must have shape \(6,\)"),
    ({"mirrored": features_of(5)}, ValueError, "mirrored must have the shape"),
    ({"grouping": KMeans}, TypeError, r"must be an instance, got the class: write KMeans\(\.\.\.\)"),
    ({"assignment": 3}, TypeError, "assignment must have a method fit_predict"),
    ({"grouping": Bad(*[0] * 5)}, ValueError, r"the grouping's labels must have shape \(6,\)"),
    ({"grouping": Bad(*[0.0] * 6)}, TypeError, "the grouping's labels must be integers"),
    ({"grouping": Bad(*[-2] * 6)}, ValueError, "got -2"),
    ({"grouping": Bad(*range(6))}, ValueError, "each of the 6 samples is a class of its own"),
]


@pytest.mark.parametrize(("options", "error", "text"), BAD)
def test_bad_arguments_and_labels(options, error, text):
    labels = [0, 0, 1, 1, -1, -1]
    with pytest.raises(error, match=text):
        _ = sampler_of(labels, **{"batch_size": 3, **options}).posets


def test_two_views_of_samples_that_are_classes_of_their_own():
    assert sampler_of(np.arange(20), 8, views=2).posets.num_classes == 20


def test_bad_arguments_later():
    sampler = sampler_of([0, 0, 1, 1, -1, -1], 4)
    before = sampler.posets
    with pytest.raises(ValueError, match="6 rows, one a sample, got 5"):
        sampler.regroup(features_of(5))
    with pytest.raises(ValueError, match="epoch"):
        sampler.set_epoch(-1)
    sampler.grouping = GivenLabels([0, 0, 1])
    with pytest.raises(ValueError, match=r"shape \(6,\)"):
        sampler.regroup(features_of(6))
    assert sampler.posets is before


def test_a_random_fraction_is_drawn_from_all_samples_alike():
    labels = np.r_[np.repeat(np.arange(5), 4), np.full(380, -1)]
    drawn = np.zeros(400)
    for batch in sampler_of(labels, 40, unassigned_fraction=0.0, random_fraction=0.5, num_batches=200):
        assert len(batch) == 40
        assert len(np.unique(batch)) >= 38  # 20 by the rules, 20 at random, 20 samples have a class
        drawn[np.unique(batch)] += 1
    assert drawn[20:].min() > 0
    assert abs(drawn[20:].mean() - 200 * 20 / 380) < 0.5  # alike, but for those that the rules took
    assert all(len(set(batch)) == 64 for batch in sampler_of(labels, 64, random_fraction=1.0))
