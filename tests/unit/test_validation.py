"""Checks of user input: one form for what is right, a clear error for what is wrong."""

import warnings

import numpy as np
import pytest
import torch

from pml_posets._validation import as_count, as_features, as_real, check_option, unit_rows


@pytest.mark.parametrize("value", [3, np.int8(3), torch.tensor(3)])
def test_counts(value):
    assert as_count(value, "k") == 3
    assert type(as_count(value, "k")) is int


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0, ValueError, "k must be at least 1, got 0"),
        (1.0, TypeError, "k must be an integer, got 1.0"),
        ("3", TypeError, "k must be an integer, got '3'"),
        (True, TypeError, "k must be an integer, got True"),
        (None, TypeError, "k must be an integer, got None"),
    ],
)
def test_wrong_counts(value, error, text):
    with pytest.raises(error, match=text):
        as_count(value, "k")


@pytest.mark.parametrize(
    ("value", "limits", "error", "text"),
    [
        (float("nan"), {}, ValueError, "x must be finite, got nan"),
        (float("inf"), {"low": 0}, ValueError, "x must be at least 0, got inf"),
        (0, {"low": 0, "open_low": True}, ValueError, "x must be above 0, got 0"),
        (1, {"low": 0, "high": 1, "open_high": True}, ValueError, r"x must be in \[0, 1\), got 1"),
        (2, {"high": 1}, ValueError, "x must be at most 1, got 2"),
        (True, {}, TypeError, "x must be a number, got True"),
        ("1", {}, TypeError, "x must be a number, got '1'"),
        (1j, {}, TypeError, "x must be a number"),
    ],
)
def test_wrong_numbers(value, limits, error, text):
    with pytest.raises(error, match=text):
        as_real(value, "x", **limits)


def test_numbers():
    assert as_real(np.float32(0.5), "x", low=0.5, high=0.5) == 0.5
    assert as_real(torch.tensor(2), "x") == 2.0


def test_options():
    from typing import Literal

    assert check_option("a", "mode", Literal["a", "b"]) == "a"
    with pytest.raises(ValueError, match="mode must be one of 'a', 'b', got 'c'"):
        check_option("c", "mode", Literal["a", "b"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_features_of_any_dtype(dtype):
    assert as_features(torch.ones(2, 3, dtype=dtype)).dtype == np.float32


def test_unit_rows():
    rows = unit_rows([[3e30, 4e30], [0, 0], [3e-30, 4e-30]])
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0], [0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("offset", [1e8, -1e9])
def test_rows_that_float32_cannot_tell_apart_are_warned_of(offset):
    rows = np.random.default_rng(0).normal(size=(50, 3))
    with pytest.warns(UserWarning, match="float32 cannot tell them apart .*subtract their mean first"):
        as_features(rows + offset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fine in (rows, rows + 1e4, np.ones((5, 3)) / 3, np.arange(6).reshape(2, 3), rows * 1e30):
            as_features(fine)
