"""Tests of what is refused, from a table."""

import re

import pytest


def refuses(*rows):
    """A test of each row (call, error, text): the call raises the error, and its message has the text."""

    @pytest.mark.parametrize(("call", "error", "text"), rows, ids=[text for _, _, text in rows])
    def test(call, error, text):
        with pytest.raises(error, match=re.escape(text)):
            call()

    return test
