"""Pages of documentation as programs: their Python blocks, and what these are said to print."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A Python block of a page.

    Attributes:
        line: of its first statement, counted from 1.
        code: as it is written.
        printed: text block that follows it directly, or None.

    """

    line: int
    code: str
    printed: str | None

    def __str__(self) -> str:
        return f"line {self.line}"


def python_blocks(page: str) -> list[Block]:
    """The Python blocks of a page in their order."""
    fences = list(_FENCED.finditer(page))
    blocks = []
    for position, fence in enumerate(fences):
        if fence[1] != "python":
            continue
        after = fences[position + 1] if position + 1 < len(fences) else None
        printed = None
        if after and after[1] == "text" and not page[fence.end() : after.start()].strip():
            printed = after[2]
        blocks.append(Block(page.count("\n", 0, fence.start(2)) + 1, fence[2], printed))
    return blocks


def without_fences(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"(?ms)^```.*?^```$", "", page)


def anchors(page: str) -> set[str]:
    """What links within a page may lead to: its headings, written as renderers write them."""
    headings = re.findall(r"^#+ (.+)$", without_fences(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


class Reading:
    """Runs the blocks of a page one after the other in one namespace.

    Args:
        path: of the page; tracebacks name it.
        blocks: its blocks.
        names: what the page takes for granted.

    """

    def __init__(self, path: Path, blocks: list[Block], names: dict[str, Any]) -> None:
        self._path, self._left = path, list(blocks)
        self._namespace = {"__name__": "__main__", **names}
        self._printed: dict[Block, str] = {}
        self._failed: Block | None = None

    def run(self, block: Block) -> str:
        """Run everything up to a block that has not run yet; return what the block printed."""
        while block not in self._printed:
            if self._failed is not None:
                pytest.fail(f"{self._failed} failed before")
            self._run_next()
        return self._printed[block]

    def _run_next(self) -> None:
        block = self._left.pop(0)
        # Empty lines above, so that a traceback counts the lines of the page.
        code = compile("\n" * (block.line - 1) + block.code, self._path, "exec")
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                exec(code, self._namespace)
        except BaseException:
            self._failed = block
            raise
        self._printed[block] = output.getvalue()
