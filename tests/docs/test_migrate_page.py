"""The page on migrating: its commands and blocks run and print what it says."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
from docs_adapters import make_forks, save_ours, save_pefts
from docs_models import save_tiny_llama
from docs_pages import Block, Reading, anchors
from docs_readers import check_block, open_page

from gralora import GraLoRAConfig

PAGE = open_page("migrate")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader who has a base model and an adapter of each kind."""
    folder = tmp_path_factory.mktemp("migrate-page")
    base = folder / "base"
    save_tiny_llama(base)
    save_pefts(base, folder / "peft-gralora", "GraloraConfig", r=16, gralora_k=2, alpha=32)
    save_pefts(
        base, folder / "fork-adapter", "GraloraConfig", r=12, gralora_k=2, hybrid_r=4, alpha=32
    )
    make_forks(folder / "fork-adapter")
    save_pefts(base, folder / "lora", "LoraConfig", r=8, lora_alpha=16)
    save_ours(base, folder / "extended", r=8, k=2, rank_pattern={"v_proj": 16})
    with PAGE.read_in(folder) as reading:
        yield reading


@pytest.mark.parametrize("block", PAGE.blocks, ids=str)
def test_block_runs_and_prints_what_the_page_says(block: Block, reading: Reading) -> None:
    check_block(block, reading)


def test_names_in_the_table_of_fields_exist() -> None:
    table = PAGE.text[PAGE.text.index("| PEFT's `GraloraConfig` |") :].split("\n\n")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines()[2:]]
    theirs = {field.name for field in dataclasses.fields(peft.GraloraConfig)}
    ours = {field.name for field in dataclasses.fields(GraLoRAConfig)}
    for left, right in rows:
        names = re.findall(r"`(\w+)`", left)
        assert set(names) <= theirs
        assert set(names if "the same" in right else re.findall(r"`(\w+)`", right)) <= ours


@pytest.mark.parametrize("link", PAGE.links)
def test_links_lead_to_files(link: str) -> None:
    assert (PAGE.path.parent / link).exists()


@pytest.mark.parametrize("anchor", PAGE.inner_links)
def test_links_within_the_page_lead_to_headings(anchor: str) -> None:
    assert anchor in anchors(PAGE.text)
