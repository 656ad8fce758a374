"""``gralora import-lora``: what it prints, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from gralora.adapters.stored import read_adapter
from gralora.cli import main


def _write(directory: Path, **fields: Any) -> None:
    directory.mkdir()
    tensors = {
        "base_model.model.up.lora_A.weight": torch.randn(3, 8),
        "base_model.model.up.lora_B.weight": torch.randn(12, 3),
    }
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["up"], **fields}
    (directory / "adapter_config.json").write_text(json.dumps(config))


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["import-lora", *map(str, arguments)])


def test_output_says_both_ranks(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    result = _run(tmp_path / "a", tmp_path / "b", "--k", "4")
    assert result.exit_code == 0
    assert "1 layer, LoRA rank 3 as rank 12" in result.stdout


@pytest.mark.parametrize(("k", "grid"), [("4", (4, 4)), ("4,2", (4, 2))])
def test_k_is_the_grid(k: str, grid: tuple[int, int], tmp_path: Path) -> None:
    _write(tmp_path / "a")
    result = _run(tmp_path / "a", tmp_path / "b", "--k", k, "--json")
    found = json.loads(result.stdout)["layers"]["up"]
    assert (found["k_out"], found["k_in"], found["r"]) == (*grid, 3 * grid[1])
    spec = read_adapter(tmp_path / "b").layers["up"].spec
    assert (spec.k_out, spec.k_in) == grid


def test_variant_is_refused_in_one_line(tmp_path: Path) -> None:
    _write(tmp_path / "a", use_dora=True)
    result = _run(tmp_path / "a", tmp_path / "b", "--k", "2")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"gralora import-lora: {tmp_path / 'a'}: ")
    assert "the adapter must be plain LoRA, got use_dora" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("k", ["0x2", "2,3,4", "", "-1", "two"])
def test_wrong_k_is_exit_code_2(k: str, tmp_path: Path) -> None:
    result = _run(tmp_path, tmp_path / "b", "--k", k)
    assert result.exit_code == 2
    assert "must be blocks per axis (4) or K_OUT,K_IN (2,4)" in result.stderr


def test_k_is_required(tmp_path: Path) -> None:
    assert _run(tmp_path, tmp_path / "b").exit_code == 2


def test_overwrite_replaces_what_was_written_before(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    runs = [
        _run(tmp_path / "a", tmp_path / "b", "--k", "2", *more)
        for more in ([], [], ["--overwrite"])
    ]
    assert [run.exit_code for run in runs] == [0, 1, 0]
    assert "OUT must be absent or an empty folder" in runs[1].stderr


def test_help_has_examples() -> None:
    assert "gralora import-lora lora adapter --k 2,4" in _run("--help").stdout
