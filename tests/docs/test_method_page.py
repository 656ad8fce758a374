"""The page on the method: its block runs, its losses are the recorded ones, its links lead on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_pages import Block, Reading, anchors
from docs_readers import ROOT, check_block, open_page

PAGE = open_page("method")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader in an empty folder."""
    folder: Path = tmp_path_factory.mktemp("method-page")
    with PAGE.read_in(folder) as reading:
        yield reading


@pytest.mark.parametrize("block", PAGE.blocks, ids=str)
def test_block_runs_and_prints_what_the_page_says(block: Block, reading: Reading) -> None:
    check_block(block, reading)


def test_losses_are_those_of_the_recorded_runs() -> None:
    path = ROOT / "examples" / "results" / "methods.json"
    runs = json.loads(path.read_text(encoding="utf-8"))
    losses = {name: run["computation"]["held_out_losses"]["100"] for name, run in runs.items()}
    quoted = f"{losses['gralora']:.3f} with GraLoRA and {losses['lora']:.3f} with LoRA"
    assert quoted in PAGE.words


LINKS = sorted(set(re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", PAGE.text)))


@pytest.mark.parametrize(("link", "anchor"), LINKS, ids=[f"{a}#{b}" for a, b in LINKS])
def test_links_lead_to_headings_of_pages(link: str, anchor: str) -> None:
    target = PAGE.path.parent / link if link else PAGE.path
    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text(encoding="utf-8"))
