"""Principal components and sums of features, against plain numbers."""

import warnings

import numpy as np
import pytest
import torch

from pml_posets.features import (
    InstanceLDA,
    NeighborWhitening,
    PartialWhitening,
    combine,
    principal_components,
)

# --- Principal components


def low_rank(num=80, wide=40, rank=6, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((num, rank)) @ np.random.default_rng(9).standard_normal((rank, wide))
    return (rows + noise * rng.standard_normal((num, wide))).astype(np.float32)


def test_cosines_are_kept():
    features, mirrored = low_rank(), low_rank(seed=1)
    rows, turned = principal_components(features, 6, mirrored)
    assert rows.shape == turned.shape == (80, 6)
    assert rows.dtype == turned.dtype == np.float32
    for found, whole in ((rows, features), (turned, mirrored)):
        unit = whole / np.linalg.norm(whole, axis=1, keepdims=True)
        np.testing.assert_allclose(found @ rows.T, unit @ (features / norms(features)).T, atol=1e-4)


def norms(rows):
    return np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_directions_are_those_of_the_decomposition():
    features = low_rank(noise=0.3)
    rows = principal_components(features, 6, normalize=False)
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    np.testing.assert_allclose(np.abs(rows), np.abs(u[:, :6] * s[:6]), atol=1e-3 * s[0])
    assert np.square(rows).sum() < np.square(features).sum()


def test_mirrored_features_go_into_the_same_directions():
    features = low_rank(noise=0.3)
    rows, turned = principal_components(features, 5, features[::-1])
    np.testing.assert_array_equal(turned, rows[::-1])
    np.testing.assert_array_equal(principal_components(features, 5), rows)


def test_rows_are_of_unit_length_unless_told_otherwise():
    features = low_rank(noise=0.3)
    features[3] = 0
    lengths = np.linalg.norm(principal_components(features, 4), axis=1)
    np.testing.assert_allclose(np.delete(lengths, 3), 1, atol=1e-6)
    assert lengths[3] == 0
    assert np.linalg.norm(principal_components(features, 4, normalize=False), axis=1).max() > 2


def test_as_many_directions_as_there_are():
    features = low_rank(noise=0.3)
    for count in (40, 500):
        np.testing.assert_array_equal(principal_components(features, count, normalize=False), features)
        np.testing.assert_allclose(
            principal_components(features, count), features / norms(features), atol=1e-6
        )
    few = principal_components(features[:7], 30)
    assert few.shape == (7, 7)
    unit = features[:7] / norms(features[:7])
    np.testing.assert_allclose(few @ few.T, unit @ unit.T, atol=1e-5)


def test_components_leave_features_and_randomness_alone():
    features = low_rank(noise=0.3)
    before, state = features.copy(), torch.get_rng_state()
    first = principal_components(features, 5, random_state=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    np.testing.assert_array_equal(principal_components(features, 5, random_state=3), first)
    np.testing.assert_allclose(
        np.abs(principal_components(features, 5, random_state=4)), np.abs(first), atol=0.05
    )
    principal_components(features, 99, normalize=False)[:] = 0
    np.testing.assert_array_equal(features, before)
    features.flags.writeable = False  # as those of a memory-mapped file: no warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        principal_components(features, 5)


def test_bad_components():
    features = low_rank()
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        principal_components(features, 0)
    with pytest.raises(TypeError, match="count"):
        principal_components(features, 2.5)
    with pytest.raises(ValueError, match=r"mirrored must have the shape \(80, 40\)"):
        principal_components(features, 3, features[:-1])
    features[5, 5] = np.inf
    with pytest.raises(ValueError, match="row 5 holds a NaN or an infinite value"):
        principal_components(features, 3)


# --- Several features as one


def test_squared_distances_add_by_weight():
    a, b = np.random.default_rng(0).normal(size=(2, 6, 5))
    rows = combine([(a, 0.7), (3 * b[:, :2], 0.3)])
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    ua, ub = a / np.linalg.norm(a, axis=1)[:, None], b[:, :2] / np.linalg.norm(b[:, :2], axis=1)[:, None]
    for i in range(6):
        for j in range(6):
            expected = 0.7 * ((ua[i] - ua[j]) ** 2).sum() + 0.3 * ((ub[i] - ub[j]) ** 2).sum()
            assert ((rows[i] - rows[j]) ** 2).sum() == pytest.approx(expected, abs=1e-5)
    plain, mirrored = combine([((a, b), 0.7), ((b, a), 0.3)])
    np.testing.assert_array_equal(plain, combine([(a, 0.7), (b, 0.3)]))
    np.testing.assert_array_equal(mirrored, combine([(b, 0.7), (a, 0.3)]))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least one pair"),
        ([(np.ones((2, 2)), 0.0)], "weight 0 must be above 0, got 0.0"),
        (
            [(np.ones((2, 2)), 1), (np.ones((3, 2)), 1)],
            "features 1 must be of the same .* 3 and 2 rows",
        ),
        ([(np.ones((2, 2)), 1), ((np.ones((2, 2)),) * 2, 1)], "all be features, or all be pairs"),
        ([(np.ones(2), 1)], r"features 0 must have shape \(N, D\)"),
    ],
)
def test_parts_that_do_not_fit(parts, message):
    with pytest.raises(ValueError, match=message):
        combine(parts)


@pytest.mark.parametrize("step", [NeighborWhitening(2), PartialWhitening(2), InstanceLDA(2)])
def test_steps_refuse_rows_whose_squares_leave_float32(step):
    rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    for scale in (1e-30, 1e30):
        with pytest.raises(ValueError, match=r"squares fit float32, got [1-9]e[+-](30|29): scale them"):
            step.fit(rows * np.float32(scale), np.arange(20) // 2)


@pytest.mark.parametrize("step", [NeighborWhitening(2), PartialWhitening(2)])
def test_columns_of_other_names_are_refused(step):
    pandas = pytest.importorskip("pandas")
    rows = np.random.default_rng(0).normal(size=(20, 2))
    step.fit(pandas.DataFrame(rows, columns=["a", "b"]))
    with pytest.raises(ValueError, match="feature names should match"):
        step.transform(pandas.DataFrame(rows, columns=["b", "a"]))
