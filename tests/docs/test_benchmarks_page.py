"""The figures that the page of results gives in tables written by hand are those of its files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest
from docs_pages import anchors
from docs_readers import ROOT

TEXT = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"
FILES = ("h200_layer", "h200_cold")
PASSES = ("forward", "step")
SLOWER = 1.01

Case = tuple[int, int, int, int]


def _timings(name: str) -> dict[Case, dict[tuple[str, str], dict[str, Any]]]:
    """The timings of each layer's in- and out-features, tokens and rank."""
    found: dict[Case, dict[tuple[str, str], dict[str, Any]]] = {}
    for timing in json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["timings"]:
        case = timing["case"]
        key = (case["in_features"], case["out_features"], case["tokens"], case["rank"])
        found.setdefault(key, {})[timing["variant"], timing["pass"]] = timing
    return found


def _measured(case: Case) -> dict[tuple[str, str], dict[str, Any]]:
    """The timings of the run that has the case."""
    return next(found[case] for found in map(_timings, FILES) if case in found)


def _slower_rows() -> Iterator[str]:
    for name in FILES:
        for (n, m, tokens, rank), found in _timings(name).items():
            for variant, adapters in (("gralora", "bf16"), ("gralora_fp32", "fp32")):
                cells = [f"{n}→{m}", str(tokens), str(rank), adapters]
                for pass_name in PASSES:
                    ours, calls = found[variant, pass_name], found["cublas", pass_name]
                    pairs = zip(ours["samples"], calls["samples"], strict=True)
                    ratio = median(a / b for a, b in pairs)
                    cells.append(f"{ratio:.2f}" if ratio > SLOWER else "")
                if any(cells[4:]):
                    yield re.sub(" +", " ", "| " + " | ".join(cells) + " |")


def test_every_row_slower_than_library_calls_is_told() -> None:
    chapter = TEXT.split("### Where library calls are faster\n")[1].split("\n### ")[0]
    told = [line for line in chapter.splitlines() if "→" in line and line.startswith("|")]
    assert sorted(told) == sorted(_slower_rows())
    assert told


AIMS = re.findall(
    r"^\| (\d+)→(\d+) \| (\d+) \| (\d+) \| [^|]+ \| ([\d.]+) / ([\d.]+) \|$",
    TEXT.split("## On an H200\n")[1].split("\n### ")[0],
    re.MULTILINE,
)


@pytest.mark.parametrize("row", AIMS, ids=lambda row: "-".join(row[:4]))
def test_what_stands_beside_an_aim_is_what_was_measured(row: tuple[str, ...]) -> None:
    n, m, tokens, rank = map(int, row[:4])
    case = (n, m, tokens, rank)
    timings = _measured(case)
    medians = [timings["gralora", name]["ratio"]["base"]["median"] for name in PASSES]
    assert list(row[4:]) == [f"{ratio:.2f}" for ratio in medians]


def test_the_table_of_aims_has_rows() -> None:
    assert len(AIMS) == 12


def test_what_others_add_over_what_the_layer_adds_is_what_was_measured() -> None:
    chapter = TEXT.split("| r | PEFT GraLoRA | library calls |\n")[1].split("\n\n")[0]
    rows = chapter.splitlines()[1:]
    for row in rows:
        rank, *shown = (cell.strip() for cell in row.strip("|").split("|"))
        for cell, variant in zip(shown, ("peft_gralora", "cublas"), strict=True):
            found = _measured((4096, 4096, 8192, int(rank)))
            added = {key: timing["ratio"]["base"]["median"] - 1 for key, timing in found.items()}
            times = [added[variant, name] / added["gralora", name] for name in PASSES]
            assert cell == " / ".join(f"{ratio:.1f}" for ratio in times)
    assert len(rows) == 3


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(#([^)]+)\)", TEXT))))
def test_links_within_the_page_lead_to_headings(link: str) -> None:
    assert link in anchors(TEXT)
