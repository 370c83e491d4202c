"""Tests of what is refused, from a table, and of what is not even warned of."""

import re
import warnings
from contextlib import contextmanager
from functools import partial

import pytest


def refuses(*rows):
    """A test of each row (call, error, text): the call raises the error, and its message has the text."""
    return _test((call, error, re.escape(text), text) for call, error, text in rows)


def refuses_each(call, *rows, error=None):
    """A test of each row (*given, error, pattern), or (*given, pattern) if all raise the one error.

    call(*given) raises the error, and its message has the pattern, a regular expression.
    """
    cases = rows if error is None else [(*given, error, pattern) for *given, pattern in rows]
    return _test((partial(call, *given), kind, pattern, pattern) for *given, kind, pattern in cases)


def _test(cases):
    rows = [pytest.param(call, error, pattern, id=name) for call, error, pattern, name in cases]

    @pytest.mark.parametrize(("call", "error", "pattern"), rows)
    def test(call, error, pattern):
        with pytest.raises(error, match=pattern):
            call()

    return test


@contextmanager
def no_warning():
    """A warning inside is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
