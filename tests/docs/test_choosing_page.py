"""The page on r and k: its blocks run, its figures are those of the measured results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from docs_pages import Block, Reading, anchors
from docs_readers import ROOT, check_block, open_page

import gralora

PAGE = open_page("choosing")
WORDS = PAGE.words
MIB = 2**20
VARIANTS = ("gralora", "peft_lora", "peft_gralora_fp32")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader in a folder with an adapter."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("choosing-page")
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 8))
    gralora.save_adapter(gralora.inject(model, gralora.GraLoRAConfig(r=4)), folder / "adapter")
    with PAGE.read_in(folder) as reading:
        yield reading


@pytest.mark.parametrize("block", PAGE.blocks, ids=str)
def test_block_runs_and_prints_what_the_page_says(block: Block, reading: Reading) -> None:
    check_block(block, reading)


def _results(name: str) -> dict[str, Any]:
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _is_case(case: dict[str, Any], sizes: tuple[int, int], r: int, k: int) -> bool:
    return (case["in_features"], case["out_features"], case["rank"], case["grid"]) == (*sizes, r, k)


ROWS = re.findall(r"^\| (\d+)→(\d+) \| (\d+) \| (\d+) \| (.+) \|$", PAGE.text, re.MULTILINE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row[:4]))
def test_steps_take_what_the_page_says(row: tuple[str, ...]) -> None:
    n, m, r, k = map(int, row[:4])
    quoted = [float(cell) for cell in row[4].split(" | ")]
    measured = [
        next(
            timing["ratio"]["base"]["median"]
            for timing in _results("h100_layer")["timings"]
            if timing["variant"] == variant
            and timing["pass"] == "step"
            and _is_case(timing["case"], (n, m), r, k)
        )
        for variant in VARIANTS
    ]
    assert quoted == pytest.approx(measured, abs=0.05)


def test_the_table_of_steps_has_rows() -> None:
    assert len(ROWS) == 9


def _memory(sizes: tuple[int, int], r: int, k: int, variant: str) -> dict[str, Any]:
    return next(
        record
        for record in _results("h100_memory")["memory"]
        if record["variant"] == variant and _is_case(record["case"], sizes, r, k)
    )


@pytest.mark.parametrize(("r", "k"), [(32, 2), (128, 4), (256, 8)], ids=str)
@pytest.mark.parametrize("sizes", [(4096, 4096), (4096, 14336)], ids=str)
def test_the_formula_gives_the_measured_saved_memory(
    sizes: tuple[int, int], r: int, k: int
) -> None:
    tokens, width = 8192, 2
    wanted = width * tokens * sizes[0] + width * k * r * tokens
    assert _memory(sizes, r, k, "gralora")["saved_bytes"] == wanted


@pytest.mark.parametrize(
    ("variant", "r", "k", "words"),
    [
        ("gralora", 32, 2, "takes {} MiB more than the frozen layer with r 32, k 2"),
        ("peft_lora", 32, 2, "(PEFT's LoRA {} MiB"),
        ("peft_gralora_fp32", 32, 2, "its GraLoRA as it comes {} MiB)"),
        ("gralora", 128, 4, "and {} MiB more with r 128, k 4"),
    ],
    ids=["gralora", "PEFT LoRA", "PEFT GraLoRA", "gralora, k 4"],
)
def test_peaks_are_those_of_the_results(variant: str, r: int, k: int, words: str) -> None:
    sizes = (4096, 4096)
    more = _memory(sizes, r, k, variant)["peak_bytes"] - _memory(sizes, r, k, "base")["peak_bytes"]
    assert words.format(f"{more / MIB:g}") in WORDS


def test_bytes_of_the_example_follow_from_the_formulae() -> None:
    n = m = 4096
    r, k, tokens, width = 128, 4, 8192, 2
    column = re.findall(r"\| (\d+) MiB \|$", PAGE.text, re.MULTILINE)
    wanted = [16 * r * (n + m), width * tokens * n, width * k * r * tokens]
    assert [int(cell) * MIB for cell in column] == [*wanted, wanted[-1]]


def test_losses_are_those_of_the_recorded_runs() -> None:
    path = ROOT / "examples" / "results" / "methods.json"
    runs = json.loads(path.read_text(encoding="utf-8"))
    losses = {name: run["computation"]["held_out_losses"] for name, run in runs.items()}
    assert (
        f"a held-out loss of {losses['gralora']['100']:.3f} with GraLoRA and "
        f"{losses['lora']['100']:.3f} with LoRA, r 16 each, from {losses['lora']['0']:.3f}"
    ) in WORDS


LINKS = sorted(set(re.findall(r"\]\((?!http)([^)#]+)(?:#([^)]*))?\)", PAGE.text)))


@pytest.mark.parametrize(("link", "anchor"), LINKS, ids=[f"{a}#{b}" for a, b in LINKS])
def test_links_lead_to_headings_of_pages(link: str, anchor: str) -> None:
    target = PAGE.path.parent / link
    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text(encoding="utf-8"))
