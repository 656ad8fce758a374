"""The page on inspecting and combining: its commands and blocks run, its numbers are recorded."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("matplotlib")

from docs_adapters import save_ours
from docs_models import save_tiny_llama
from docs_pages import Block, Reading, anchors
from docs_readers import ROOT, check_block, open_page

PAGE = open_page("inspect")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader who has a base model and two adapters."""
    folder = tmp_path_factory.mktemp("inspect-page")
    save_tiny_llama(folder / "base")
    for seed, name in enumerate(("maths", "code")):
        save_ours(folder / "base", folder / name, seed, r=16, k=4)
    torch._dynamo.reset()
    with PAGE.read_in(folder) as reading, pytest.MonkeyPatch.context() as patch:
        # The default backend calls a C++ compiler for most of a minute.
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
        yield reading
    torch._dynamo.reset()


@pytest.mark.parametrize("block", PAGE.blocks, ids=str)
def test_block_runs_and_prints_what_the_page_says(block: Block, reading: Reading) -> None:
    check_block(block, reading)


def test_numbers_of_the_picture_are_the_recorded_ones() -> None:
    path = ROOT / "benchmarks" / "results" / "lora" / "smollm2_inspect.json"
    layers = json.loads(path.read_text(encoding="utf-8"))["layers"].values()
    entropies = [layer["entropy_rank"] for layer in layers]
    above = sum(layer["entropy_rank"] > layer["r"] for layer in layers)
    text = PAGE.words
    assert f"above r in {above} of {len(layers)} layers" in text
    assert f"median of {statistics.median(entropies):.1f} of at most 32" in text
    assert {layer["largest_rank"] for layer in layers} == {32}
    energy = statistics.median(layer["energy_rank"] for layer in layers)
    assert f"median of {energy:.0f} singular values" in text
    spread = max(layer["block_spread"] for layer in layers)
    assert f"at most a factor of {spread:.2f}" in text


@pytest.mark.parametrize("link", PAGE.links)
def test_links_lead_to_files(link: str) -> None:
    assert (PAGE.path.parent / link).exists()


@pytest.mark.parametrize("anchor", PAGE.inner_links)
def test_links_within_the_page_lead_to_headings(anchor: str) -> None:
    assert anchor in anchors(PAGE.text)
