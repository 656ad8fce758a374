"""The page on serving: its commands and blocks run, its tables are true."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

from docs_adapters import save_ours
from docs_models import save_tiny_llama
from docs_pages import Block, Reading, anchors
from docs_readers import ROOT, check_block, open_page

from gralora.adapters.export_lora import VLLM_RANKS

PAGE = open_page("serving")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader who has a base model and an adapter."""
    folder = tmp_path_factory.mktemp("serving-page")
    save_tiny_llama(folder / "base")
    save_ours(folder / "base", folder / "adapter", r=16, k=2)
    with PAGE.read_in(folder) as reading:
        yield reading


@pytest.mark.parametrize("block", PAGE.blocks, ids=str)
def test_block_runs_and_prints_what_the_page_says(block: Block, reading: Reading) -> None:
    check_block(block, reading)


def test_flag_for_vllm_is_the_one_that_is_printed() -> None:
    (flag,) = re.findall(r"^vllm serve .*--max-lora-rank (\d+)", PAGE.text, re.MULTILINE)
    assert f"vLLM needs --max-lora-rank {flag}\n" in PAGE.text


def test_ranks_of_vllm_are_those_of_the_export() -> None:
    (found,) = re.findall(r"`--max-lora-rank` of vLLM takes ([\d, and]+)\.", PAGE.text)
    assert [int(number) for number in re.findall(r"\d+", found)] == list(VLLM_RANKS)


def _record() -> dict[str, Any]:
    path = ROOT / "benchmarks" / "results" / "lora" / "cpu_export.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_table_is_that_of_the_recorded_run() -> None:
    rows = re.findall(
        r"^\| (\d+) x (\d+) \| (.+) \| (\d+) \| (\S+) \| (\S+) \|$", PAGE.text, re.MULTILINE
    )
    expected = [
        (
            str(row["out_features"]),
            str(row["in_features"]),
            "**`gralora export-lora`**" if row["way"].startswith("gralora") else row["way"],
            str(row["rank"]),
            f"{row['cpu_seconds']:.3g}",
            f"{row['error']:.1e}" if row["error"] else "0",
        )
        for row in _record()["rows"]
    ]
    assert rows == expected


def test_conditions_are_those_of_the_recorded_run() -> None:
    found = _record()["environment"]
    text = PAGE.words
    for name in ("torch", "peft"):
        title = {"torch": "torch", "peft": "PEFT"}[name]
        assert f"{title} {found['packages'][name]}" in text
    assert f"`python {found['command']}`" in text
    assert f"{found['cpu']}, {found['cpu_threads']} threads" in text


@pytest.mark.parametrize("link", PAGE.links)
def test_links_lead_to_files(link: str) -> None:
    assert (PAGE.path.parent / link).exists()


@pytest.mark.parametrize("anchor", PAGE.inner_links)
def test_links_within_the_page_lead_to_headings(anchor: str) -> None:
    assert anchor in anchors(PAGE.text)
