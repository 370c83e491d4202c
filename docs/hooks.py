"""Hooks of MkDocs: pages that show files of the repository, with their links and pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "benchmarks" / "pictures"


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures of the benchmarks."""
    for path in sorted(PICTURES.iterdir()):
        files.append(File.generated(config, f"pictures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a file in where a line says `{{ its path }}`; links between the benchmarks' files lead to pages."""
    markdown = re.sub(r"^\{\{ (\S+) \}\}$", _text, markdown, flags=re.MULTILINE)
    pages = {"README.md": "benchmarks.md", "RESULTS.md": "results.md", "NOTES.md": "notes.md"}
    return re.sub(r"\]\((README|RESULTS|NOTES)\.md", lambda m: f"]({pages[m[1] + '.md']}", markdown)


def _text(match: re.Match[str]) -> str:
    """A file without its heading, which the page has."""
    return (ROOT / match[1]).read_text("utf-8").split("\n", 1)[1]
