"""The shell blocks of a page: their lines that call gralora run, as a reader's would."""

from __future__ import annotations

import re
import shlex
from typing import NoReturn

import pytest
from click.testing import CliRunner
from docs_pages import Block

from gralora.cli import main

_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Programs that pages name and that are not here.
_ELSEWHERE = ("vllm", "pip")


def blocks_of(page: str) -> list[Block]:
    """Python and shell blocks in their order; a shell block as the Python that runs it."""
    fences = list(_FENCED.finditer(page))
    blocks = []
    for fence, after in zip(fences, [*fences[1:], None], strict=False):
        if fence[1] not in ("python", "bash"):
            continue
        printed = None
        if after and after[1] == "text" and not page[fence.end() : after.start()].strip():
            printed = after[2]
        code = fence[2] if fence[1] == "python" else f"run_commands({fence[2]!r})\n"
        blocks.append(Block(page.count("\n", 0, fence.start(2)) + 1, code, printed))
    return blocks


def run_commands(lines: str) -> None:
    """Run the commands of a shell block and print their stdout; fail where one of them fails.

    A line that ends in ``# exit code 1`` has to fail; what it prints to stderr is printed.
    """
    for line in lines.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] in _ELSEWHERE:
            continue
        if words[0] != "gralora":
            _fail(line, "pages run gralora alone")
        result = CliRunner().invoke(main, words[1:])
        refused = line.endswith("# exit code 1")
        if result.exit_code != int(refused):
            _fail(line, result.output)
        print(result.stderr if refused else result.stdout, end="")


def _fail(line: str, why: str) -> NoReturn:
    pytest.fail(f"{line}: {why}")
