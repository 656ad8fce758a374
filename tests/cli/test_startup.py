"""How the command line starts: help is there at once, and torch only for work."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gralora.cli import main

COMMANDS = sorted(main.commands)


def _imported(stderr: str) -> set[str]:
    """Top-level packages that a process started with ``-X importtime`` has imported."""
    lines = [line for line in stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)],
    ids=" ".join,
)
def test_help_imports_neither_torch_nor_rich(python, arguments):
    result = python("-X", "importtime", "-m", "gralora", *arguments)
    assert result.returncode == 0, result.stderr
    found = _imported(result.stderr)
    assert "click" in found
    assert not found & {"torch", "rich", "numpy", "safetensors"}


def test_help_of_the_installed_program_imports_no_torch(python):
    program = shutil.which("gralora", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("the program is not beside the interpreter")
    result = python("-X", "importtime", program, "--help")
    assert result.returncode == 0, result.stderr
    assert "torch" not in _imported(result.stderr)


def test_commands_have_torch_and_operators(python):
    result = python("-m", "gralora", "info", "--json")
    assert result.returncode == 0, result.stderr
    assert '"torch"' in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_overview_has_a_whole_sentence_for_each_command(name):
    text = CliRunner().invoke(main, ["--help"]).stdout
    (sentence,) = re.findall(rf"^  {name} +(\S.*)$", text, re.MULTILINE)
    assert sentence.endswith(".")
    assert not sentence.endswith("...")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples(name):
    text = CliRunner().invoke(main, [name, "--help"]).stdout
    assert re.search(rf"^  Examples:\n(?:    .+\n)*    gralora {name}", text, re.MULTILINE)
