"""The prose of the documents is wrapped, so that a change shows as a few lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_inline import DOCUMENTS, ROOT
from docs_pages import without_fences

LONGEST = 120
# benchmarks.md is mostly written by a program, with a command on each line.
PAGES = sorted(
    {path for path in (*DOCUMENTS, ROOT / "CHANGELOG.md") if path.suffix == ".md"}
    - {ROOT / "docs" / "benchmarks.md"}
)
# Tables and indented blocks cannot be wrapped.
_UNWRAPPED = re.compile(r" {4}| *\|")


def _too_long(text: str) -> list[str]:
    lines = without_fences(text).splitlines()
    return [line for line in lines if len(line) > LONGEST and not _UNWRAPPED.match(line)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_of_prose_are_wrapped(path: Path) -> None:
    assert _too_long(path.read_text(encoding="utf-8")) == []


def test_only_long_prose_is_noticed() -> None:
    words = "word " * 30
    text = f"{words}\n| {words} |\n    {words}\n```text\n{words}\n```\nshort\n"
    assert _too_long(text) == [words]
