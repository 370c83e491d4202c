"""The code of the documentation runs and prints something; every page is reached."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    )
]


@pytest.mark.parametrize("code", BLOCKS)
def test_the_code_runs(code, capsys):
    exec(compile(code, "docs", "exec"), {"__name__": "docs"})
    assert "print(" not in code or capsys.readouterr().out.strip()


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in PAGES:
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}" in navigation, page
