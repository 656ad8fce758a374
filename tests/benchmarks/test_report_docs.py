"""The page of results is made from the files."""

import json
from pathlib import Path
from typing import Any

import pytest
import report_docs
from doc_tables import conditions, tables

RECORD: dict[str, Any] = {
    "suite": "merge",
    "environment": {
        "command": "benchmarks/run.py merge --rounds 9",
        "commit": "0123456789abcdef",
        "cpu": "a CPU, 2 cores",
        "cpu_threads": 2,
        "date": "2026-01-02T03:04:05+00:00",
        "packages": {"torch": "2.0", "peft": None, "gralora": "0.1.0"},
        "python": "3.12.0",
    },
    "settings": {"rounds": 9},
    "case": {"in_features": 8, "out_features": 4, "rank": 2, "grid": 2, "dtype": "fp32"},
    "timings": [
        {
            "variant": "copy",
            "mode": "eager",
            "seconds": {"median": 1.2345e-3},
            "gb_per_s": 1234.4,
            "share_of_copy": {"median": 1.0, "q1": 0.994, "q3": 1.006},
        }
    ],
}
PAGE = "# Page\n\nBefore.\n\n<!-- results: merge -->\nold\n<!-- /results -->\n\nAfter.\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with one result file."""
    (tmp_path / "merge.json").write_text(json.dumps(RECORD))
    return tmp_path


def test_section_is_made_from_its_file(results: Path) -> None:
    made = report_docs.render(PAGE, results)
    quartiles = "0.99\N{EN DASH}1.01"
    assert f"| copy | wall | 1,234 | 1,234 | 1.00 | {quartiles} |" in made
    assert "old" not in made


def test_text_around_a_section_stays(results: Path) -> None:
    made = report_docs.render(PAGE, results)
    assert made.startswith("# Page\n\nBefore.\n\n<!-- results: merge -->\n")
    assert made.endswith("<!-- /results -->\n\nAfter.\n")


def test_rendering_again_changes_nothing(results: Path) -> None:
    made = report_docs.render(PAGE, results)
    assert report_docs.render(made, results) == made


def test_missing_file_leaves_an_empty_section(tmp_path: Path) -> None:
    made = report_docs.render(PAGE, tmp_path)
    assert "<!-- results: merge -->\n\n<!-- /results -->" in made


def test_page_without_sections_is_refused(results: Path) -> None:
    with pytest.raises(ValueError, match="has no line"):
        report_docs.render("# Page\n", results)


def test_conditions_name_versions_rounds_and_commit() -> None:
    found = conditions(RECORD)
    assert found.startswith("a CPU, 2 cores, 2 threads; torch 2.0, Python 3.12.0; 9 rounds; ")
    assert "2026-01-02, commit `0123456789ab`" in found


def test_check_tells_a_stale_page(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = results / "page.md"
    page.write_text(PAGE)
    arguments = ["--page", str(page), "--results", str(results)]
    assert report_docs.main([*arguments, "--check"]) == 1
    assert page.read_text() == PAGE
    page.write_text(report_docs.render(PAGE, results))
    assert report_docs.main([*arguments, "--check"]) == 0


def test_page_of_the_repository_is_that_of_its_results() -> None:
    page = report_docs.PAGE.read_text(encoding="utf-8")
    assert report_docs.render(page, report_docs.RESULTS) == page


@pytest.mark.parametrize("path", sorted(report_docs.RESULTS.glob("*.json")), ids=lambda p: p.stem)
def test_every_result_file_has_tables(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    assert all(table.startswith("**") for table in tables(record))
    assert any(tables(record))
