"""The documentation: its code runs and prints something, every page is reached, its names exist."""

import contextlib
import functools
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import pml_posets

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [*PAGES, *sorted(ROOT.glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]
ELSEWHERE = {"photos", "rounds"}  # test_readme.py gives them a folder of photos
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    if page.stem not in ELSEWHERE
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


def test_the_reference_covers_every_public_module():
    shown = set()
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        shown |= set(re.findall(r"^::: pml_posets\.(\w+)$", page.read_text("utf-8"), re.M))
    found = {module.name for module in pkgutil.iter_modules(pml_posets.__path__)}
    assert shown == {name for name in found if not name.startswith("_")}
    for name in shown - {"embedder", "gallery"}:  # rooms, and single modules, say what is public
        assert importlib.import_module(f"pml_posets.{name}").__all__, name


@functools.cache
def known_names():
    """All names in the public modules of the package."""
    modules = pkgutil.walk_packages(pml_posets.__path__, "pml_posets.")
    public = [module.name for module in modules if "._" not in module.name]
    return {name for module in public for name in vars(importlib.import_module(module))}


def dotted_names(text):
    """The names of the package in a text: those with dots, and what its code imports."""
    for name in re.findall(r"\bpml_posets(?:\.\w+)+", text):
        yield name
    for module, names in re.findall(r"^from (pml_posets[\w.]*) import ([^(\n]+|\([^)]*\))", text, re.M):
        for name in re.findall(r"\w+", re.sub(r"#.*", "", names)):
            yield f"{module}.{name}"


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_of_the_package_exist(page):
    for dotted in dotted_names(page.read_text("utf-8")):
        parts = dotted.split(".")
        for length in range(1, len(parts)):  # modules, then their attributes
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(".".join(parts[: length + 1]))
        found = pml_posets
        for part in parts[1:]:
            assert hasattr(found, part), dotted
            found = getattr(found, part)


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_of_classes_and_files_exist(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    elsewhere = {"Trainer", "Recipe", "DeprecationWarning", "KMeans"}  # the last is an old name
    classes = set(re.findall(r"`([A-Z]\w*[a-z]\w*)[`(]", prose))
    assert classes <= known_names() | elsewhere
    folders = "benchmarks|docs|examples|pml_posets|tests|core|data|figures|measures|regression|timing"
    paths = re.findall(rf"(?<![\w/])((?:{folders})/[\w./-]*\w)", prose)
    for path in (*paths, *re.findall(r"`(\w+\.py)`", prose)):
        places = (ROOT, ROOT / "benchmarks", ROOT / "pml_posets", ROOT / "examples")
        assert any((place / path).exists() for place in places), path
