"""Hostile adapters through the commands that read adapters alone: one line, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from security_changes import FILES
from security_checks import in_time, tree
from security_files import CONFIG, PREFIX, TENSORS, adapter_config, write_adapter

from gralora.cli import main

A0 = f"{PREFIX}layers.0.up.gralora_A"
COMMANDS: dict[str, list[str]] = {
    "inspect": ["adapter"],
    "export-lora": ["adapter", "out"],
    "combine": ["adapter", "adapter", "out"],
    "convert": ["adapter", "out"],
    "import-lora": ["adapter", "out", "--k", "2"],
}


def _refused(root: Path, command: str, patch: pytest.MonkeyPatch) -> str:
    """What the command says, which has to be one line."""
    patch.chdir(root)
    before = tree(root)
    with in_time():
        result = CliRunner().invoke(main, [command, *COMMANDS[command]])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    (line,) = (line for line in result.stderr.splitlines() if line)
    assert line.startswith(f"gralora {command}: ")
    assert tree(root) == before
    return line


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("command", COMMANDS)
def test_spoilt_tensors_are_refused(
    command: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = FILES[case]
    config = {"peft_type": "LORA", "lora_alpha": 8} if command == "import-lora" else {}
    change(write_adapter(tmp_path / "adapter", **config) / TENSORS, A0)
    assert message in _refused(tmp_path, command, monkeypatch)


@pytest.mark.parametrize("command", ["inspect", "combine"])
def test_numbers_that_are_not_finite_are_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_adapter(tmp_path / "adapter") / TENSORS
    values = load_file(path)
    values[A0][0, 0, 0] = float("nan")
    save_file(values, path)
    assert "all numbers must be finite" in _refused(tmp_path, command, monkeypatch)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_key_twice_in_the_config_is_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_adapter(tmp_path / "adapter") / CONFIG
    path.write_text(json.dumps(adapter_config())[:-1] + ', "r": 8}')
    assert "'r' is given twice" in _refused(tmp_path, command, monkeypatch)
