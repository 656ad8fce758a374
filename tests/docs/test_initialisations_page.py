"""The page on how adapters start: its blocks run, its table is that of the measured results."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator

import pytest
import torch
from docs_models import save_tiny_llama
from docs_pages import Block, Reading, anchors
from docs_readers import ROOT, check_block, open_page

import gralora

PAGE = open_page("initialisations")
EXAMPLES = ROOT / "examples"
RESULT = json.loads((EXAMPLES / "results" / "starts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader in a folder with a small model, `path`, and token ids for it, `ids`."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("initialisations-page")
    save_tiny_llama(folder / "base")
    ids = torch.randint(1, 96, (2, 9), generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Reading(PAGE.path, PAGE.blocks, {"path": str(folder / "base"), "ids": ids})


@pytest.mark.parametrize("block", PAGE.blocks, ids=str)
def test_block_runs_and_prints_what_the_page_says(block: Block, reading: Reading) -> None:
    check_block(block, reading)


def test_the_table_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "compare_starts", raising=False)
    pytest.importorskip("rich")
    import compare_starts

    assert compare_starts.markdown(RESULT) in PAGE.text


def test_the_conditions_are_those_of_the_results() -> None:
    found = RESULT["environment"]
    assert f"rank {RESULT['options']['r']}, float32, on {found['threads']} threads" in PAGE.words
    assert f"torch {found['packages']['torch'].partition('+')[0]}" in PAGE.words
    assert found["cpu"] in PAGE.words


WAYS = re.findall(r'^\| `"(\w+)"`[^|]* \| [^|]*\|[^|]*\|[^|]*\|[^|]*\|$', PAGE.text, re.MULTILINE)


def test_the_first_table_has_every_way() -> None:
    assert WAYS == ["kaiming", "gaussian", "orthogonal", "pissa", "pissa_niter_N"]


@pytest.mark.parametrize("way", WAYS)
def test_ways_of_the_first_table_are_accepted(way: str) -> None:
    way = way.replace("_N", "_4")
    assert gralora.GraLoRAConfig(init_weights=way).init_weights == way


LINKS = sorted(set(re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", PAGE.text)))


@pytest.mark.parametrize(("link", "anchor"), LINKS, ids=[f"{a}#{b}" for a, b in LINKS])
def test_links_lead_to_headings_of_pages(link: str, anchor: str) -> None:
    target = PAGE.path.parent / link if link else PAGE.path
    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text(encoding="utf-8"))
