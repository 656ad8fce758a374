"""Commands that stand in the sentences and tables of documents, and those of shell blocks.

A shell block is fenced, or indented by four spaces and begins with the name of a program. A
notebook's document is the text between its code.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
DOCUMENTS = (
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(ROOT / name / "README.md" for name in ("benchmarks", "csrc", "examples", "tests/peft_suite")),
    *sorted((ROOT / "examples").glob("*.ipynb")),
)
_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SHELLS = ("bash", "console")
PROGRAMS = ("accelerate", "bash", "cmake", "gralora", "pip", "pytest", "python", "torchrun", "uv")
_INDENTED = re.compile(rf"^ {{4}}((?:{'|'.join(PROGRAMS)}) .*)$", re.MULTILINE)
# What follows the name in a message of gralora that a page quotes.
_QUOTED = "was"


@dataclass(frozen=True)
class Command:
    """A command of a document.

    Attributes:
        document: its path from the root of the repository.
        text: as it stands there, on one line.
        inline: whether it is in no block.

    """

    document: str
    text: str
    inline: bool

    @property
    def words(self) -> list[str]:
        """What the shell makes of it, without settings of the environment before it."""
        words = shlex.split(self.text, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        return words

    def __str__(self) -> str:
        return f"{self.document}: {self.text}"


def commands(program: str) -> list[Command]:
    """All commands of a program, each once; its name alone is none."""
    return [c for c in all_commands() if c.words[:1] == [program] and len(c.words) > 1]


def all_commands() -> list[Command]:
    """Whatever stands in shell blocks and between backticks, each once."""
    return list(dict.fromkeys(command for path in DOCUMENTS for command in _commands(path)))


def read(path: Path) -> str:
    """The text of a document."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def unlabelled(text: str) -> list[str]:
    """First lines of the fenced blocks of a text that name no language, yet begin with a program.

    Whatever looks for commands passes such blocks over.
    """
    starts = [code.strip().partition("\n")[0] for kind, code in _BLOCK.findall(text) if not kind]
    return [line for line in starts if line.removeprefix("$ ").partition(" ")[0] in PROGRAMS]


def _commands(path: Path) -> Iterator[Command]:
    text, document = read(path), str(path.relative_to(ROOT))
    for kind, code in _BLOCK.findall(text):
        if kind in _SHELLS:
            for line in code.replace("\\\n", " ").splitlines():
                for part in re.split(r" && | \| ", line.strip()):
                    yield from _command(document, part, inline=False)
    text = _BLOCK.sub("", text)
    for line in _INDENTED.findall(text):
        yield from _command(document, line, inline=False)
    for span in re.findall(r"`([^`]+)`", text):
        for part in " ".join(span.split()).split(" && "):
            yield from _command(document, part, inline=True)


def _command(document: str, text: str, *, inline: bool) -> Iterator[Command]:
    command = Command(document, text, inline)
    try:
        words = command.words
    except ValueError:
        # A quotation mark without its partner: no command.
        return
    if words and words[1:2] != [_QUOTED]:
        yield command
