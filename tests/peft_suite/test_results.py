"""The recorded runs of PEFT's tests, and what the page on PEFT says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PAGE = " ".join((HERE.parents[1] / "docs" / "peft.md").read_text(encoding="utf-8").split())
VERSIONS = ("0.19.1", "0.20.0", "0.21.2")


@pytest.fixture(params=VERSIONS)
def record(request):
    """Versions and counts of the run with one version of PEFT."""
    text = (HERE / "results" / f"peft_{request.param}.json").read_text(encoding="utf-8")
    found = json.loads(text)
    assert found["versions"]["peft"] == request.param
    return found


def total(record, column):
    return sum(row[column] for row in record["files"].values())


def test_there_is_a_record_of_each_version():
    assert sorted(path.name for path in (HERE / "results").iterdir()) == [
        f"peft_{version}.json" for version in VERSIONS
    ]


def test_no_test_passes_only_without(record):
    assert total(record, "passed only without") == 0


def test_fused_layers_ran(record):
    assert total(record, "ran fused") >= 300


def test_the_page_names_the_versions(record):
    versions = record["versions"]
    assert f"PEFT {versions['peft']} " in PAGE
    assert f"with transformers {versions['transformers']}" in PAGE or (
        f"and transformers {versions['transformers']}" in PAGE
    )


def test_the_page_says_how_many_pass(record):
    passed, fused = total(record, "passed in both"), total(record, "ran fused")
    assert f" {passed:,} " in PAGE or f" {passed} " in PAGE
    assert f" {fused:,} " in PAGE or f" {fused}, " in PAGE or f" {fused} " in PAGE
