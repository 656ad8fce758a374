"""The comparison of two runs of PEFT's tests, and the files that it reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft_suite_comparison import (
    BOTH_FAILED,
    BOTH_PASSED,
    BOTH_SKIPPED,
    FAULT,
    GAIN,
    NETWORK,
    compare,
    table,
)
from peft_suite_records import CRASHED, Record, append, left, read


@pytest.mark.parametrize(
    ("plain", "accelerated", "kind"),
    [
        ("passed", "passed", BOTH_PASSED),
        ("xfailed", "xfailed", BOTH_PASSED),
        ("passed", "failed", FAULT),
        ("passed", "skipped", FAULT),
        ("passed", CRASHED, FAULT),
        ("passed", None, FAULT),
        ("xfailed", "xpassed", FAULT),
        ("failed", "failed", BOTH_FAILED),
        ("failed", "passed", GAIN),
        ("skipped", "skipped", BOTH_SKIPPED),
        ("skipped", "passed", GAIN),
    ],
)
def test_pair_of_outcomes_is_judged(plain: str, accelerated: str | None, kind: str) -> None:
    second = [Record("t.py::a", accelerated)] if accelerated else []
    (verdict,) = compare([Record("t.py::a", plain, "assert 1 == 2")], second)
    assert verdict.kind == kind


def test_a_failed_download_is_no_result() -> None:
    message = "OSError: We couldn't connect to the Hub to load the files"
    (verdict,) = compare([Record("t.py::a", "failed", message)], [])
    assert verdict.kind == NETWORK


def test_tests_are_matched_by_their_ids() -> None:
    first = [Record("t.py::a", "passed"), Record("t.py::b", "failed", "no")]
    second = [Record("t.py::b", "failed", "no"), Record("t.py::a", "passed")]
    assert [v.kind for v in compare(first, second)] == [BOTH_PASSED, BOTH_FAILED]


def test_table_counts_tests_that_ran_fused() -> None:
    first = [Record("tests/t.py::a", "passed"), Record("tests/t.py::b", "passed")]
    second = [Record("tests/t.py::a", "passed", "", 7), Record("tests/t.py::b", "passed")]
    header, row, total = table(compare(first, second)).splitlines()
    assert header.split()[-3:] == ["ran", "fused", "calls"]
    assert row.split() == ["t.py", "2", "0", "0", "0", "0", "0", "1", "7"]
    assert total.split()[1:] == row.split()[1:]


def test_a_test_that_ends_its_process_has_crashed(tmp_path: Path) -> None:
    path = tmp_path / "records"
    append(path, Record("t.py::a", CRASHED))
    append(path, Record("t.py::a", "passed"))
    append(path, Record("t.py::b", CRASHED))
    assert [(record.test, record.outcome) for record in read(path)] == [
        ("t.py::a", "passed"),
        ("t.py::b", CRASHED),
    ]


def test_the_last_process_says_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "records"
    assert left(path) is None
    for count in (500, 20):
        append(path, {"left": count})
    assert left(path) == 20
