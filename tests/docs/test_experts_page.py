"""The page on mixture-of-experts models: its blocks run and print what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import torch
from docs_pages import Block, Reading, anchors
from docs_readers import ROOT, check_block, open_page

from gralora.checkpoints import matrices
from gralora.nn.experts import products

PAGE = open_page("experts")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A reader in an empty folder."""
    pytest.importorskip("transformers.integrations.moe", reason="needs transformers 5")
    pytest.importorskip("peft")
    with PAGE.read_in(tmp_path_factory.mktemp("experts-page")) as reader:
        yield reader


@pytest.mark.parametrize("block", PAGE.blocks, ids=str)
@pytest.mark.filterwarnings("ignore:save_adapter. PEFT cannot load this adapter")
def test_block_runs_and_prints_what_the_page_says(block: Block, reading: Reading) -> None:
    check_block(block, reading)


@pytest.mark.parametrize("link", PAGE.links)
def test_links_lead_to_files(link: str) -> None:
    assert (PAGE.path.parent / link).exists()


def test_inner_links_lead_to_headings() -> None:
    assert set(PAGE.inner_links) <= anchors(PAGE.text)


COLUMNS = ("gralora", "gralora_fp32", "peft_lora")


def test_the_table_of_costs_is_that_of_the_results() -> None:
    path = ROOT / "benchmarks" / "results" / "h100_moe.json"
    measured: dict[tuple[int, int], dict[str, float]] = {}
    for timing in json.loads(path.read_text(encoding="utf-8"))["timings"]:
        if timing["pass"] == "step":
            case = timing["case"]
            found = measured.setdefault((case["experts"], case["tokens"]), {})
            found[timing["variant"]] = timing["ratio"]["base"]["median"]
    cells = r" \| (\d+)" + r" \| ([\d.]+)" * len(COLUMNS) + r" \|$"
    rows = re.findall(rf"^\|(?: .+: (\d+) of \S+ \d for each token)?{cells}", PAGE.text, re.M)
    assert len(rows) == len(measured)
    experts = 0
    for number, tokens, *ratios in rows:
        experts = int(number or experts)
        quoted = dict(zip(COLUMNS, map(float, ratios), strict=True))
        expected = measured[experts, int(tokens)]
        assert quoted == pytest.approx({name: expected[name] for name in COLUMNS}, abs=0.00501)


def test_the_table_of_names_has_the_schemes_that_are_known() -> None:
    rows = re.findall(
        r"^\| `([\w.]+)\.experts\.3\.(\w+)\.weight`, `(\w+)`, `(\w+)`", PAGE.text, re.M
    )
    assert rows == [
        (
            new.removesuffix(".experts").strip(".") or "mlp",
            *parts["gate_up_proj"],
            *parts["down_proj"],
        )
        for _, new, parts in matrices._SCHEMES
    ]


@pytest.mark.parametrize(("width", "copied"), [(8, False), (16, False), (12, True)])
def test_a_weight_is_copied_where_the_limits_say_it(width: int, copied: bool) -> None:
    weight = torch.randn(2, 16, width, dtype=torch.bfloat16)
    for matrix in (weight, weight.transpose(1, 2)):
        whole = products._whole_matrices(matrix)
        assert (whole.data_ptr() != weight.data_ptr()) is copied
    assert "no multiple of 16 bytes, that is of 8 numbers in 16 bits" in PAGE.words
