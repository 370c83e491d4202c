"""Every distance of a y-step is the same for features that lie far from the origin."""

import numpy as np
import pytest

from pml_posets.grouping import RelaxedAssignment, SurrogateGrouping
from pml_posets.grouping.relaxed_assignment import compactness
from pml_posets.posets import Posets, medoids


def moved(offset, num_classes=30, size=9, spread=0.1):
    """Features far away, the very same ones at the origin, and the class of each."""
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.repeat(np.arange(num_classes), size))
    near = rng.normal(size=(num_classes, 8))[truth] + spread * rng.normal(size=(truth.size, 8))
    far = (near + offset).astype(np.float32)
    return far, (far - np.float32(offset)).astype(np.float32), truth


OFFSETS = pytest.mark.parametrize("offset", [1e4, -4e4])


@OFFSETS
@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("options", [{}, {"num_classes": 20, "mean_size": 5, "top_fraction": 0.3}])
def test_surrogate_grouping(offset, backend, options):
    far, near, truth = moved(offset)
    grouping = SurrogateGrouping(backend=backend, **options)
    expected = grouping.fit_predict(near)
    radii, tightness = grouping.radii_, grouping.compactness_
    np.testing.assert_array_equal(grouping.fit_predict(far), expected)
    np.testing.assert_allclose(grouping.radii_, radii, rtol=1e-4)
    np.testing.assert_allclose(grouping.compactness_, tightness, rtol=1e-4)
    if not options:
        assert all(np.unique(truth[expected == c]).size == 1 for c in range(expected.max() + 1))


@pytest.mark.parametrize(("offset", "backend"), [(1e4, "faiss"), (-4e4, "torch")])
def test_relaxed_assignment(offset, backend):
    far, near, truth = moved(offset, num_classes=15)
    start = np.where(np.random.default_rng(1).random(truth.size) < 0.2, -1, truth)
    assignment = RelaxedAssignment(backend=backend)
    expected = assignment.fit_predict(near, start)
    objective = assignment.objective_
    np.testing.assert_array_equal(assignment.fit_predict(far, start), expected)
    np.testing.assert_allclose(assignment.objective_, objective, rtol=1e-5)


@OFFSETS
@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("size", [9, 60])  # differences, and products of centered rows
def test_posets_medoids_and_compactness(offset, backend, size):
    far, near, truth = moved(offset, size=size)
    labels = np.where(np.random.default_rng(1).random(truth.size) < 0.3, -1, truth)
    np.testing.assert_array_equal(medoids(far, labels), medoids(near, labels))
    assert compactness(far, labels) == pytest.approx(compactness(near, labels), rel=1e-5)
    found, expected = (Posets.build(x, labels, 3, backend=backend) for x in (far, near))
    np.testing.assert_array_equal(found.nearest_classes, expected.nearest_classes)
    np.testing.assert_allclose(found.nearest_distances, expected.nearest_distances, rtol=1e-5)
