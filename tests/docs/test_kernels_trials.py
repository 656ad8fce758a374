"""The figures that the page on kernels gives of trials are those of their file."""

from __future__ import annotations

import json
import re

import pytest
from docs_readers import ROOT

TEXT = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
TRIALS = json.loads(
    (ROOT / "benchmarks" / "results" / "trials" / "h200_early_products.json").read_text()
)
SQUARE, NARROW = (4096, 4096, 64), (4096, 1024, 64)

# By the first words of a row: what it compares, and the layer.
ROWS = {
    "the product begins early": ("after", "early", SQUARE),
    "a projection and a product on one": ("early", "beside_5", SQUARE),
    "the same, four stages": ("early", "beside_4", SQUARE),
    "the projection on the clusters": ("early_168", "few_clusters", SQUARE),
    "stages freed at once": ("early_168", "free_at_once", SQUARE),
    "other warps store": ("free_at_once", "others_store", SQUARE),
    "gradients that are ready first": ("others_store", "others_store_ready_first", NARROW),
}
RATIOS = r"([\d.]+) / ([\d.]+)"
LINES = re.findall(
    rf"^\| ([^|]*?) ?\| (\d+) \|[^|]*\| {RATIOS} \| {RATIOS} \|",
    TEXT.split("### Beginning before the latents are there\n")[1],
    re.MULTILINE,
)


def _ratios(name: str, tokens: int, layer: tuple[int, int, int]) -> list[str]:
    found = {
        row["pass"]: f"{row['ratio']:.2f}"
        for row in TRIALS[name]
        if (row["in_features"], row["out_features"], row["rank"]) == layer
        and row["tokens"] == tokens
    }
    return [found["forward"], found["step"]]


def test_rows_of_trials_are_those_of_the_file() -> None:
    trial, seen = "", 0
    for title, tokens, *shown in LINES:
        trial = title or trial
        key = next((key for key in ROWS if trial.startswith(key)), None)
        if key is None:
            continue
        before, after, layer = ROWS[key]
        assert shown[:2] == _ratios(before, int(tokens), layer), trial
        assert shown[2:] == _ratios(after, int(tokens), layer), trial
        seen += 1
    assert seen == 11


@pytest.mark.parametrize("key", ROWS)
def test_every_trial_is_on_the_page(key: str) -> None:
    assert f"| {key}" in TEXT
