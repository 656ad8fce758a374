"""The report of gpu_check.sh."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from check_report import main, make_report


def test_each_step_is_there_with_its_verdict(tmp_path: Path) -> None:
    verdicts = tmp_path / "verdicts"
    verdicts.write_text("build\tpassed\t61\nracecheck-expand\tout of time\t540\n")
    report = make_report(verdicts, [])
    assert report["steps"] == [
        {"step": "build", "verdict": "passed", "seconds": 61},
        {"step": "racecheck-expand", "verdict": "out of time", "seconds": 540},
    ]
    assert report["tests"] == {}


def test_the_counts_of_tests_are_kept_and_other_last_lines_are_not(tmp_path: Path) -> None:
    counted, stopped = tmp_path / "tests.log", tmp_path / "memcheck.log"
    counted.write_text("....\n==== 3 passed, 1 skipped in 2.00s ====\n")
    stopped.write_text("....\n.. [ 80%]")
    logs = [counted, stopped, tmp_path / "absent.log"]
    assert make_report(tmp_path / "absent", logs)["tests"] == {
        "tests": "3 passed, 1 skipped in 2.00s"
    }


def test_the_file_names_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRALORA_COMMIT", "abc")
    main([str(tmp_path / "absent"), str(tmp_path / "check.json")])
    report = json.loads((tmp_path / "check.json").read_text())
    assert (report["commit"], report["steps"]) == ("abc", [])
