"""Principal components and sums of features, against plain numbers."""

import numpy as np
import pytest
from pictures import generators
from refusals import no_warning, refuses_each

from pml_posets.features import combine, principal_components

# --- Principal components


def low_rank(num=80, wide=40, rank=6, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((num, rank)) @ np.random.default_rng(9).standard_normal((rank, wide))
    return (rows + noise * rng.standard_normal((num, wide))).astype(np.float32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_cosines_are_kept():
    features, mirrored = low_rank(), low_rank(seed=1)
    rows, turned = principal_components(features, 6, mirrored)
    assert rows.shape == turned.shape == (80, 6)
    assert rows.dtype == turned.dtype == np.float32
    for found, whole in ((rows, features), (turned, mirrored)):
        np.testing.assert_allclose(found @ rows.T, unit(whole) @ unit(features).T, atol=1e-4)


def test_the_directions_are_those_of_the_decomposition():
    features = low_rank(noise=0.3)
    features[3] = 0
    plain = principal_components(features, 6, normalize=False)
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    np.testing.assert_allclose(np.abs(plain), np.abs(u[:, :6] * s[:6]), atol=1e-3 * s[0])
    rows, turned = principal_components(features, 6, features[::-1])
    np.testing.assert_array_equal(turned, rows[::-1])
    np.testing.assert_allclose(np.delete(rows, 3, 0), unit(np.delete(plain, 3, 0)), atol=1e-6)
    assert not rows[3].any()


def test_as_many_directions_as_there_are():
    features = low_rank(noise=0.3)
    for count in (40, 500):
        np.testing.assert_array_equal(principal_components(features, count, normalize=False), features)
        np.testing.assert_allclose(principal_components(features, count), unit(features), atol=1e-6)
    few = principal_components(features[:7], 30)
    assert few.shape == (7, 7)
    np.testing.assert_allclose(few @ few.T, unit(features[:7]) @ unit(features[:7]).T, atol=1e-5)


def test_components_leave_features_and_randomness_alone():
    features = low_rank(noise=0.3)
    before, state = features.copy(), generators()
    first = principal_components(features, 5, random_state=3)
    assert generators() == state
    np.random.rand()  # noqa: NPY002
    np.testing.assert_array_equal(principal_components(features, 5, random_state=3), first)
    other = principal_components(features, 5, random_state=4)
    np.testing.assert_allclose(np.abs(other), np.abs(first), atol=0.05)
    principal_components(features, 99, normalize=False)[:] = 0
    np.testing.assert_array_equal(features, before)
    features.flags.writeable = False  # as those of a memory-mapped file: no warning
    with no_warning():
        principal_components(features, 5)


test_bad_components = refuses_each(
    lambda count, mirrored: principal_components(low_rank(), count, mirrored),
    (0, None, ValueError, "count must be at least 1, got 0"),
    (2.5, None, TypeError, "count"),
    (3, low_rank()[:-1], ValueError, r"mirrored must have the shape \(80, 40\)"),
    (3, low_rank() + np.float32(np.inf), ValueError, "mirrored must be finite, but row 0 holds a NaN"),
)


# --- Several features as one


def test_squared_distances_add_by_weight():
    a, b = np.random.default_rng(0).normal(size=(2, 6, 5))
    rows = combine([(a, 0.7), (3 * b[:, :2], 0.3)])
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    ua, ub = unit(a), unit(b[:, :2])
    for i, j in np.ndindex(6, 6):
        expected = 0.7 * ((ua[i] - ua[j]) ** 2).sum() + 0.3 * ((ub[i] - ub[j]) ** 2).sum()
        assert ((rows[i] - rows[j]) ** 2).sum() == pytest.approx(expected, abs=1e-5)
    plain, mirrored = combine([((a, b), 0.7), ((b, a), 0.3)])
    np.testing.assert_array_equal(plain, combine([(a, 0.7), (b, 0.3)]))
    np.testing.assert_array_equal(mirrored, combine([(b, 0.7), (a, 0.3)]))


TWO = np.ones((2, 2))


test_parts_that_do_not_fit = refuses_each(
    combine,
    ([], "at least one pair"),
    ([TWO, TWO], "each part must be a pair"),
    ([(TWO, 0.0)], "weight 0 must be above 0, got 0.0"),
    ([(TWO, 1), (np.ones((3, 2)), 1)], "features 1 must be of the same .* 3 and 2 rows"),
    ([(TWO, 1), ((TWO, TWO), 1)], "all be features, or all be pairs"),
    ([(np.ones(2), 1)], r"features 0 must have shape \(N, D\)"),
    error=(ValueError, TypeError),
)
