"""``gralora convert``: what it prints, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from gralora.cli import main


def _write(directory: Path, **fields: Any) -> None:
    directory.mkdir()
    tensors = {
        "base_model.model.up.gralora_A": torch.randn(2, 4, 6),
        "base_model.model.up.gralora_B": torch.randn(2, 6, 4),
        "base_model.model.up.gralora_A_general.weight": torch.randn(2, 8),
        "base_model.model.up.gralora_B_general.weight": torch.randn(8, 2),
    }
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "GRALORA",
        "r": 8,
        "hybrid_r": 2,
        "gralora_k": 2,
        "target_modules": ["up"],
        **fields,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def test_output_says_both_meanings_of_the_rank(tmp_path: Path) -> None:
    _write(tmp_path / "a", gralora_alpha=16)
    result = _run(tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 0
    assert "1 layer, r=8 of the fork is PEFT's r=6 with hybrid_r=2, alpha=16" in result.stdout


def test_json_is_one_object(tmp_path: Path) -> None:
    _write(tmp_path / "a", gralora_alpha=16)
    found = json.loads(_run(tmp_path / "a", tmp_path / "b", "--json").stdout)
    assert found.pop("directory") == str(tmp_path / "b")
    assert found == {"layers": 1, "total_rank": 8, "r": 6, "hybrid_r": 2, "k": 2, "alpha": 16}


def test_what_is_no_fork_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    _write(tmp_path / "a", alpha=16, r=6)
    result = _run(tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 1
    assert result.stderr.startswith("gralora convert: the adapter must be one of the")
    assert "PEFT's already" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_overwrite_replaces_what_was_written_before(tmp_path: Path) -> None:
    _write(tmp_path / "a", gralora_alpha=16)
    runs = [_run(tmp_path / "a", tmp_path / "b", *more) for more in ([], [], ["--overwrite"])]
    assert [run.exit_code for run in runs] == [0, 1, 0]
    assert "OUT must be absent or an empty folder" in runs[1].stderr


@pytest.mark.parametrize("arguments", [["a"], ["a", "b", "c"]], ids=" ".join)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert _run(*arguments).exit_code == 2


def test_help_has_examples() -> None:
    assert "  gralora convert fork-adapter adapter\n" in _run("--help").stdout
