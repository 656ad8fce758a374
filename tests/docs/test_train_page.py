"""The page on training: its blocks run and print what it says, its commands exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from docs_models import save_tiny_llama
from docs_pages import Block, Reading, anchors, python_blocks

from gralora.cli import main

PATH = Path(__file__).parents[2] / "docs" / "train.md"
PAGE = PATH.read_text(encoding="utf-8")
BLOCKS = python_blocks(PAGE)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader who follows the page in an empty folder."""
    for package in ("transformers", "peft"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("train-page")
    save_tiny_llama(folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Reading(PATH, BLOCKS, {"path": str(folder / "base")})


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_block_runs_and_prints_what_the_page_says(block: Block, reading: Reading) -> None:
    printed = reading.run(block)
    if block.printed is not None:
        assert printed == block.printed


COMMANDS = sorted(set(re.findall(r"`gralora ([a-z-]+)[ `]", PAGE)))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_the_page_names_exist(command: str) -> None:
    assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0


LINKS = sorted(set(re.findall(r"\]\((?!http)([^)#]+)(?:#([^)]*))?\)", PAGE)))


@pytest.mark.parametrize(("link", "anchor"), LINKS, ids=[f"{a}#{b}" for a, b in LINKS])
def test_links_lead_to_headings_of_pages(link: str, anchor: str) -> None:
    target = PATH.parent / link
    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text(encoding="utf-8"))


@pytest.mark.parametrize("anchor", sorted(set(re.findall(r"\]\(#([^)]+)\)", PAGE))))
def test_links_within_the_page_lead_to_headings(anchor: str) -> None:
    assert anchor in anchors(PAGE)
