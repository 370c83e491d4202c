"""k-means: against scikit-learn's, far from the origin, warm starts, empty clusters, in the sampler."""

import numpy as np
import pytest
from refusals import refuses_each
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

import pml_posets
from pml_posets import grouping
from pml_posets.grouping.kmeans import KMeansGrouping
from pml_posets.samplers.pseudo_label import PseudoLabelSampler


def blobs(centers=6, count=300, seed=0):
    features, labels = make_blobs(count, 5, centers=centers, cluster_std=0.3, random_state=seed)
    return features.astype(np.float32), labels


def test_the_planting_is_found():
    features, planted = blobs()
    found = KMeansGrouping(6, num_starts=4)
    assert adjusted_rand_score(found.fit_predict(features), planted) == 1
    reference = KMeans(6, n_init=4, random_state=0).fit(features)
    assert found.inertia_ == pytest.approx(reference.inertia_, rel=1e-4)
    distances = ((features[:, None] - found.centers_) ** 2).sum(-1)
    np.testing.assert_array_equal(found.labels_, distances.argmin(1))
    for k in range(6):
        means = features[found.labels_ == k].mean(0)
        np.testing.assert_allclose(found.centers_[k], means, atol=1e-3)


@pytest.mark.parametrize("offset", [1e4, -1e5, np.float32([1e5, 0, 0, -3e4, 7])])
def test_far_from_the_origin_it_is_scikit_learn(offset):
    features, planted = blobs(10, 1000, seed=3)
    features = (features + offset).astype(np.float32)
    reference = KMeans(10, n_init=1, random_state=0).fit_predict(features.astype(np.float64))
    found = KMeansGrouping(10).fit(features)
    assert adjusted_rand_score(reference, found.labels_) == adjusted_rand_score(planted, reference) == 1
    means = np.stack([features[found.labels_ == k].mean(0, dtype=np.float64) for k in range(10)])
    np.testing.assert_allclose(found.centers_, means, atol=0.02)
    warm = KMeansGrouping(10).fit_predict(features, labels=planted)
    np.testing.assert_array_equal(warm, planted)


def test_many_clusters_start_without_greed(monkeypatch):
    monkeypatch.setattr("pml_posets.grouping.kmeans._GREEDY_CLUSTERS", 5)
    features, planted = blobs()
    assert adjusted_rand_score(KMeansGrouping(6, num_starts=4).fit_predict(features + 1e4), planted) == 1


def test_the_seed_settles_it():
    features = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    first, again, other = (KMeansGrouping(20, random_state=seed).fit_predict(features) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert adjusted_rand_score(first, other) < 1


def test_a_warm_start_keeps_the_ids():
    features, _ = blobs()
    provider = KMeansGrouping(6, num_starts=4)
    before = provider.fit_predict(features)
    permuted = np.random.default_rng(0).permutation(6)[before]
    wider = np.hstack([features, features]) + 0.01  # another dimension too
    np.testing.assert_array_equal(provider.fit_predict(wider, labels=permuted), permuted)
    cold = KMeansGrouping(6, num_starts=4, warm_start=False)
    np.testing.assert_array_equal(cold.fit_predict(features, labels=permuted), before)
    np.testing.assert_array_equal(provider.fit_predict(features, labels=np.minimum(before, 3)), before)
    np.testing.assert_array_equal(provider.fit_predict(features, np.zeros(300, int)), before)  # y is ignored


def test_no_cluster_is_empty_while_samples_differ():
    features, _ = blobs(centers=4)
    labels = np.zeros(300, np.int64)
    labels[:2] = 3  # 1 and 2 are empty
    assert np.bincount(KMeansGrouping(4).fit_predict(features, labels=labels), minlength=4).min() > 0
    repeated = np.repeat(np.arange(5, dtype=np.float32), 10)[:, None]
    assert np.bincount(KMeansGrouping(5).fit_predict(repeated), minlength=5).tolist() == [10] * 5
    assert KMeansGrouping(3).fit_predict(np.ones((9, 2), np.float32)).shape == (9,)
    assert sorted(KMeansGrouping(50).fit_predict(features[:50])) == list(range(50))


def test_in_the_sampler():
    features, planted = blobs()
    kmeans = KMeansGrouping(6, num_starts=4)
    sampler = PseudoLabelSampler(features, batch_size=20, samples_per_class=5, grouping=kmeans)
    assert adjusted_rand_score(sampler.labels, planted) == 1
    before = sampler.labels.copy()
    sampler.regroup(features + 0.01)
    np.testing.assert_array_equal(sampler.labels, before)
    batch = next(iter(sampler))
    assert np.unique(sampler.labels[batch], return_counts=True)[1].tolist() == [5] * 4


@pytest.mark.parametrize("module", [pml_posets, grouping])
def test_the_old_name_warns(module):
    with pytest.warns(DeprecationWarning, match="KMeans is now KMeansGrouping"):
        assert module.KMeans is KMeansGrouping


test_what_is_wrong_is_said = refuses_each(
    lambda options, given: KMeansGrouping(**{"num_clusters": 3, **options}).fit_predict(
        **{"features": blobs()[0], **given}
    ),
    ({"num_clusters": 301}, {}, "at most the number of samples, got 301 for 300"),
    ({"num_clusters": 1}, {}, "num_clusters"),
    ({"num_starts": 0}, {}, "num_starts"),
    ({"max_iterations": 0}, {}, "max_iterations"),
    ({"random_state": -1}, {}, "random_state"),
    ({}, {"features": np.full((5, 2), np.nan)}, "finite"),
    ({}, {"labels": np.zeros(5, int)}, r"\(300,\)"),
    error=ValueError,
)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_numbers_whose_squares_leave_float32(scale):
    rows = np.repeat(np.eye(4, dtype=np.float32), 10, axis=0)
    rows += np.float32(0.01) * np.eye(40, 4, dtype=np.float32)
    found = KMeansGrouping(4).fit(rows * np.float32(scale))
    assert (np.sort(np.bincount(found.labels_)) == 10).all()
    np.testing.assert_allclose(found.inertia_, scale**2 * KMeansGrouping(4).fit(rows).inertia_, rtol=1e-3)
    assert np.abs(found.centers_).max() == pytest.approx(scale, rel=0.05)
