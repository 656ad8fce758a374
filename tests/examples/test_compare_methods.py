"""compare_methods.py: what it keeps of the four runs, and what it makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SHARED = {"r": 16, "k": 2, "steps": 3, "batch": 1, "device": "cpu"}
LOCAL = {"model": None, "text": [], "out": "/a/folder", "cache": "/a/cache"}


def _record(method: str) -> dict[str, Any]:
    """What finetune.py leaves behind, in short."""
    return {
        "options": {"method": method, "lr": 1e-3, "seq_len": 8} | SHARED | LOCAL,
        "environment": {"cpu": "A CPU", "threads": 2, "packages": {"torch": "2.99.0"}},
        "computation": {
            "losses": [3.0, 2.0, 1.5],
            "held_out_losses": {"0": 3.125, "1": 2.5, "3": 1.75},
            "trainable_parameters": 1234,
            "parameters": 10000,
        },
        "timings": {
            "training_s": 2.0,
            "training_cpu_s": 3.9,
            "tokens_per_s": 1500.4,
            "total_s": 3.0,
        },
        "peak_memory_bytes": 3 << 29,
        "files": ["run.json"],
    }


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, with a stand-in for finetune.py and with files in a temporary folder."""
    pytest.importorskip("matplotlib")
    import compare_methods

    def run(command: list[str], *, check: bool) -> None:
        assert check
        method, out = (command[command.index(name) + 1] for name in ("--method", "--out"))
        Path(out, "run.json").write_text(json.dumps(_record(method)), encoding="utf-8")
        commands.append(command)

    commands: list[list[str]] = []
    monkeypatch.setattr(compare_methods.subprocess, "run", run)
    monkeypatch.setattr(compare_methods, "commands", commands, raising=False)
    return compare_methods


def _main(compare: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> None:
    files = ["--results", str(folder / "methods.json"), "--figure", str(folder / "loss.png")]
    monkeypatch.setattr(sys, "argv", ["compare_methods.py", "--device", "cpu", *files, *more])
    compare.main()


def test_every_method_is_run_with_the_given_options(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _main(compare, monkeypatch, tmp_path, "--steps", "3")
    methods = [command[command.index("--method") + 1] for command in compare.commands]
    assert methods == ["gralora", "hybrid", "lora", "full"]
    assert all(command[-4:] == ["--steps", "3", "--device", "cpu"] for command in compare.commands)


def test_the_results_name_no_folder_of_this_machine(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _main(compare, monkeypatch, tmp_path)
    assert "/a/" not in (tmp_path / "methods.json").read_text(encoding="utf-8")


def test_the_figure_is_a_picture(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from matplotlib.image import imread

    _main(compare, monkeypatch, tmp_path)
    assert imread(tmp_path / "loss.png").std() > 0.05


def test_the_table_has_a_row_for_each_method(
    compare: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _main(compare, monkeypatch, tmp_path)
    row = "| lora | 1,234 (12.3%) | 0.001 | 3.125 → 1.750 | 1,500 | 1.5 GiB |"
    assert row in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("cpu_seconds", "said"),
    [pytest.param(3.9, False, id="quiet"), pytest.param(2.0, True, id="half the CPU")],
)
def test_a_disturbed_measurement_is_named(
    compare: ModuleType, cpu_seconds: float, said: bool
) -> None:
    run = _record("lora")
    run["timings"]["training_cpu_s"] = cpu_seconds
    line = compare.conditions({"gralora": _record("gralora"), "lora": run})
    assert ("as little as 50% of the CPU" in line) is said


def test_redrawing_measures_nothing(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _main(compare, monkeypatch, tmp_path)
    (tmp_path / "loss.png").unlink()
    compare.commands.clear()
    _main(compare, monkeypatch, tmp_path, "--methods")
    assert (compare.commands, (tmp_path / "loss.png").exists()) == ([], True)


def test_a_failed_run_ends_the_comparison(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(command: list[str], *, check: bool) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(compare.subprocess, "run", fail)
    with pytest.raises(subprocess.CalledProcessError):
        _main(compare, monkeypatch, tmp_path)
    assert not (tmp_path / "methods.json").exists()
