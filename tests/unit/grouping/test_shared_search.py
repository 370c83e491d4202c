"""A y-step searches once and looks for NaN once, whatever takes part in it."""

import numpy as np
import pytest

from pml_posets import _nearest_classes, _validation
from pml_posets.grouping import (
    ConfidentGrouping,
    RelaxedAssignment,
    SurrogateGrouping,
    _base,
    relaxed_assignment,
)
from pml_posets.posets import Posets
from pml_posets.samplers.pseudo_label import PseudoLabelSampler


@pytest.fixture
def counted(monkeypatch):
    """Searches among all samples, and scans of whole tables of features for finite values."""
    counts = {"searches": 0, "scans": 0}
    for module in (_base, relaxed_assignment, _nearest_classes):
        plain = module.search

        def search(features, k, plain=plain, **options):
            counts["searches"] += len(features) == 400
            return plain(features, k, **options)

        monkeypatch.setattr(module, "search", search)
    finite = np.isfinite

    def isfinite(array, *args, **options):
        counts["scans"] += np.shape(array) == (400, 8)
        return finite(array, *args, **options)

    monkeypatch.setattr(_validation.np, "isfinite", isfinite)
    return counts


def data():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 50, 400)
    features = rng.normal(size=(50, 8))[truth] + 0.2 * rng.normal(size=(400, 8))
    return features.astype(np.float32), rng.integers(0, 100, 400)


@pytest.mark.parametrize("assignment", [None, RelaxedAssignment()])
@pytest.mark.parametrize("by_source", [False, True])
@pytest.mark.parametrize("mirror", [False, True])
def test_one_search_and_one_scan(counted, assignment, by_source, mirror):
    features, sources = data()
    options = {"mirrored": features[:, ::-1].copy()} if mirror else {}
    given = {"assignment": assignment, "sources": sources if by_source else None}
    sampler = PseudoLabelSampler(features, 32, **given, **options)
    for _ in range(2):
        counted.update(searches=0, scans=0)
        posets = sampler.regroup(features, **options)
        assert counted == {"searches": 1, "scans": 2 if mirror else 1}
        assert posets.num_classes > 10


@pytest.mark.parametrize("options", [{}, {"one_per_source": False}])
def test_the_shared_search_changes_no_poset(options):
    features, sources = data()
    grouping = SurrogateGrouping(**options)
    sampler = PseudoLabelSampler(features, batch_size=32, sources=sources, grouping=grouping)
    labels = SurrogateGrouping(**options).fit_predict(features, sources=sources)
    assert sampler.posets.equals(Posets.build(features, labels, sources=sources))


@pytest.mark.parametrize("unit", [True, False])
def test_sure_groups_share_their_search_where_rows_have_unit_length(counted, unit):
    features, sources = data()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    features = features if unit else features * np.linspace(1, 2, 400, dtype=np.float32)[:, None]
    grouping = ConfidentGrouping(coverage=0.5, max_neighbors=16)
    sampler = PseudoLabelSampler(features, batch_size=32, sources=sources, grouping=grouping)
    counted.update(searches=0)
    posets = sampler.posets
    assert counted["searches"] == 1
    assert posets.num_classes > 10
    labels = ConfidentGrouping(coverage=0.5, max_neighbors=16).fit_predict(features, sources=sources)
    expected = Posets.build(features, labels, sources=sources).to_arrays()
    for name, found in posets.to_arrays().items():  # lengths are 1 but for rounding
        np.testing.assert_allclose(found, expected[name], atol=1e-5)
    found = grouping.find_neighbors(features, sources=sources)
    again = ConfidentGrouping(coverage=0.5).fit_predict(features, sources=sources, neighbors=found)
    np.testing.assert_array_equal(again, labels)
