"""Extension of griffe: sections of this package's docstrings that griffe does not know."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Sections(griffe.Extension):
    """Show "Example:" as code, and "Source: ..." and the like as paragraphs of their own."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
            text = re.sub(r"(?m)^(Source|Differs from the paper|Shapes): ", r"\n**\1:** ", text)
            obj.docstring.value = text
