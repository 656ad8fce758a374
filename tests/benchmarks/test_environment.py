"""What a result file says about its making, and how it is written."""

import json
from pathlib import Path

import pytest
import torch

from gralora.bench.environment import environment, write_json


def test_written_file_holds_the_record(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_json(path, {"a": [1.5, None]})
    assert json.loads(path.read_text()) == {"a": [1.5, None]}


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_environment_names_software_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRALORA_COMMIT", "abc123")
    found = environment(torch.device("cpu"), ["gralora", "bench"])
    assert found["commit"] == "abc123"
    assert found["packages"]["torch"].startswith(torch.__version__.partition("+")[0])


def test_command_holds_no_folder() -> None:
    command = ["benchmarks/run.py", "layer", "--json", "/elsewhere/x.json"]
    found = environment(torch.device("cpu"), command)["command"]
    assert found == "benchmarks/run.py layer --json x.json"


def test_installed_package_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRALORA_COMMIT", raising=False)
    assert environment(torch.device("cpu"), ["gralora", "bench"])["commit"] == "unknown"
