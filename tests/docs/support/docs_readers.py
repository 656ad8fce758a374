"""What the tests of pages with commands share: the page, its reader, and where its links lead."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from docs_commands import blocks_of, run_commands
from docs_pages import Block, Reading

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Page:
    """A page of the documentation.

    Attributes:
        path: of its file.
        text: of it.
        blocks: Python and shell blocks in their order.

    """

    path: Path
    text: str
    blocks: list[Block]

    @property
    def words(self) -> str:
        """The text on one line."""
        return " ".join(self.text.split())

    @property
    def links(self) -> list[str]:
        """Paths of other files that it links to."""
        return sorted(set(re.findall(r"\]\(([^)#:]+)\)", self.text)))

    @property
    def inner_links(self) -> list[str]:
        """Headings of its own that it links to."""
        return sorted(set(re.findall(r"\]\(#([^)]+)\)", self.text)))

    @contextlib.contextmanager
    def read_in(self, folder: Path) -> Iterator[Reading]:
        """A reader whose working directory is `folder`."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            yield Reading(self.path, self.blocks, {"run_commands": run_commands})


def open_page(name: str) -> Page:
    """The page `docs/<name>.md`."""
    path = ROOT / "docs" / f"{name}.md"
    text = path.read_text(encoding="utf-8")
    return Page(path, text, blocks_of(text))


def check_block(block: Block, reading: Reading) -> None:
    """Fail unless a block runs, and prints what the page says where it says something."""
    printed = reading.run(block)
    if block.printed is not None and printed != block.printed:
        pytest.fail(f"{block} prints\n{printed}\nand not\n{block.printed}")
