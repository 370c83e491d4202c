"""Checks of user input: one form for what is right, a clear error for what is wrong."""

from typing import Literal

import numpy as np
import pytest
import torch
from refusals import no_warning

from pml_posets._validation import as_codes, as_count, as_features, as_real, check_option, unit_rows


@pytest.mark.parametrize("value", [3, np.int8(3), torch.tensor(3)])
def test_counts(value):
    assert as_count(value, "k") == 3
    assert type(as_count(value, "k")) is int


@pytest.mark.parametrize(
    ("check", "value", "options", "text"),
    [
        (as_count, 0, {}, "x must be at least 1, got 0"),
        (as_count, 1.0, {}, "x must be an integer, got 1.0"),
        (as_count, "3", {}, "x must be an integer, got '3'"),
        (as_count, True, {}, "x must be an integer, got True"),
        (as_count, None, {}, "x must be an integer, got None"),
        (as_real, float("nan"), {}, "x must be finite, got nan"),
        (as_real, float("inf"), {"low": 0}, "x must be at least 0, got inf"),
        (as_real, 0, {"low": 0, "open_low": True}, "x must be above 0, got 0"),
        (as_real, 1, {"low": 0, "high": 1, "open_high": True}, r"x must be in \[0, 1\), got 1"),
        (as_real, 2, {"high": 1}, "x must be at most 1, got 2"),
        (as_real, True, {}, "x must be a number, got True"),
        (as_real, "1", {}, "x must be a number, got '1'"),
        (as_real, 1j, {}, "x must be a number"),
        (check_option, "c", {"options": Literal["a", "b"]}, "x must be one of 'a', 'b', got 'c'"),
    ],
)
def test_wrong_numbers_and_options(check, value, options, text):
    kind = TypeError if "an integer" in text or "a number" in text else ValueError
    with pytest.raises(kind, match=text):
        check(value, "x", **options)


def test_right_numbers_and_options():
    assert as_real(np.float32(0.5), "x", low=0.5, high=0.5) == 0.5
    assert as_real(torch.tensor(2), "x") == 2.0
    assert check_option("a", "mode", Literal["a", "b"]) == "a"


def test_unit_rows():
    rows = unit_rows([[3e30, 4e30], [0, 0], [3e-30, 4e-30]])
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0], [0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("offset", [1e8, -1e9])
def test_rows_that_float32_cannot_tell_apart_are_warned_of(offset):
    rows = np.random.default_rng(0).normal(size=(50, 3))
    with pytest.warns(UserWarning, match="float32 cannot tell them apart .*subtract their mean first"):
        as_features(rows + offset)
    with no_warning():
        for fine in (rows, rows + 1e4, np.ones((5, 3)) / 3, np.arange(6).reshape(2, 3), rows * 1e30):
            as_features(fine)


def test_sources_of_several_kinds():
    for sources in (
        list("bab"),
        [2, 1, 2],
        ["b", 1, "b"],
        np.array([2, 1, 2], object),
        torch.tensor([2, 1, 2]),
    ):
        found = as_codes(sources, 3)
        assert found.dtype == np.int64
        assert (found[0], found[2]) == (1, 1)
        assert found[1] == 0


@pytest.mark.parametrize("missing", [None, np.nan, (1, 2)])
def test_a_source_that_is_not_known(missing):
    sources = np.empty(3, object)
    sources[:] = ["a", "b", "a"]
    sources[1] = missing
    with pytest.raises(TypeError, match=r"sources must be ints or strings, one for each sample, got .* at 1"):
        as_codes(sources, 3)
    with pytest.raises(TypeError, match="got nan at 2"):
        as_codes([0, 1, np.nan], 3)
