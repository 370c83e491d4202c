"""k-means: against scikit-learn's, warm starts, empty clusters, in the sampler, what is wrong."""

import numpy as np
import pytest
from sklearn.cluster import KMeans as Reference
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from pml_posets.grouping.kmeans import KMeans
from pml_posets.samplers.pseudo_label import PseudoLabelSampler

BACKENDS = ["faiss", "sklearn"]


def blobs(centers=6, count=300, seed=0):
    features, labels = make_blobs(count, 5, centers=centers, cluster_std=0.3, random_state=seed)
    return features.astype(np.float32), labels


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_planting_is_found(backend):
    features, planted = blobs()
    found = KMeans(6, num_starts=4, backend=backend)
    assert adjusted_rand_score(found.fit_predict(features), planted) == 1
    reference = Reference(6, n_init=4, random_state=0).fit(features)
    assert found.inertia_ == pytest.approx(reference.inertia_, rel=1e-4)
    distances = ((features[:, None] - found.centers_) ** 2).sum(-1)
    np.testing.assert_array_equal(found.labels_, distances.argmin(1))
    for k in range(6):
        np.testing.assert_allclose(found.centers_[k], features[found.labels_ == k].mean(0), atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_seed_settles_it(backend):
    features = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    first, again, other = (
        KMeans(20, backend=backend, random_state=seed).fit_predict(features) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert adjusted_rand_score(first, other) < 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_warm_start_keeps_the_ids(backend):
    features, _ = blobs()
    provider = KMeans(6, num_starts=4, backend=backend)
    before = provider.fit_predict(features)
    permuted = np.random.default_rng(0).permutation(6)[before]
    wider = np.hstack([features, features]) + 0.01  # another dimension too
    np.testing.assert_array_equal(provider.fit_predict(wider, labels=permuted), permuted)
    cold = KMeans(6, num_starts=4, backend=backend, warm_start=False)
    np.testing.assert_array_equal(cold.fit_predict(features, labels=permuted), before)
    np.testing.assert_array_equal(provider.fit_predict(features, labels=np.minimum(before, 3)), before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_clusters_are_filled_from_far_samples(backend):
    features, _ = blobs(centers=4)
    labels = np.zeros(300, np.int64)
    labels[:2] = 3  # 1 and 2 are empty
    found = KMeans(4, backend=backend).fit_predict(features, labels=labels)
    assert np.bincount(found, minlength=4).min() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_cluster_is_empty_while_samples_differ(backend):
    features = np.repeat(np.arange(5, dtype=np.float32), 10)[:, None]
    found = KMeans(5, backend=backend).fit_predict(features)
    assert np.bincount(found, minlength=5).tolist() == [10] * 5
    same = KMeans(3, backend=backend).fit_predict(np.ones((9, 2), np.float32))
    assert same.shape == (9,)


def test_as_many_clusters_as_samples():
    features = np.arange(6, dtype=np.float32)[:, None]
    assert sorted(KMeans(6).fit_predict(features)) == list(range(6))


def test_in_the_sampler():
    features, planted = blobs()
    kmeans = KMeans(6, num_starts=4)
    sampler = PseudoLabelSampler(features, batch_size=20, samples_per_class=5, grouping=kmeans)
    assert adjusted_rand_score(sampler.labels, planted) == 1
    before = sampler.labels.copy()
    sampler.regroup(features + 0.01)
    np.testing.assert_array_equal(sampler.labels, before)
    batch = next(iter(sampler))
    assert np.unique(sampler.labels[batch], return_counts=True)[1].tolist() == [5] * 4


def test_without_faiss(monkeypatch):
    import builtins

    real = builtins.__import__
    features, planted = blobs()

    def refuse(name, *arguments, **options):
        if name == "faiss":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr("pml_posets.grouping.kmeans.find_spec", lambda name: None)
    assert adjusted_rand_score(KMeans(6, num_starts=4).fit_predict(features), planted) == 1
    with pytest.raises(ImportError, match="needs faiss-gpu or faiss-cpu"):
        KMeans(6, backend="faiss").fit_predict(features)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_clusters": 301}, ValueError, "at most the number of samples, got 301 for 300"),
        ({"num_clusters": 1}, ValueError, "num_clusters"),
        ({"num_starts": 0}, ValueError, "num_starts"),
        ({"max_iterations": 0}, ValueError, "max_iterations"),
        ({"random_state": -1}, ValueError, "random_state"),
        ({"backend": "gpu"}, ValueError, "backend"),
        ({"num_clusters": 2.5}, TypeError, "num_clusters"),
    ],
)
def test_what_is_wrong(options, error, text):
    with pytest.raises(error, match=text):
        KMeans(**options).fit_predict(blobs()[0])


def test_features_and_labels_that_are_wrong():
    features, _ = blobs()
    with pytest.raises(ValueError, match="finite"):
        KMeans(3).fit_predict(np.full((5, 2), np.nan))
    with pytest.raises(ValueError, match=r"\(300,\)"):
        KMeans(3).fit_predict(features, labels=np.zeros(5, int))
