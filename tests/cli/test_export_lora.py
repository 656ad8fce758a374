"""``gralora export-lora``: what it prints, and how it fails."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from gralora.adapters.stored import StoredLayer
from gralora.adapters.write import write_adapter
from gralora.cli import main
from gralora.nn.spec import make_spec


def _write(directory: Path, *ranks: int, **settings: Any) -> None:
    layers = {}
    for number, r in enumerate(ranks):
        spec = make_spec(8, 8, r=r, k=2, alpha=2 * r, hybrid_r=0, dropout=0.0, use_rslora=False)
        layers[f"layers.{number}.up"] = StoredLayer(
            spec, torch.randn(2, 4, r), torch.randn(2, r, 4)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        write_adapter(directory, layers, **settings)


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["export-lora", *map(str, arguments)])


def test_output_says_the_rank_and_what_vllm_needs(tmp_path: Path) -> None:
    _write(tmp_path / "a", 8, 8)
    result = _run(tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 0
    assert "LoRA of rank 16 (2 layers), float32" in result.stdout
    assert "vLLM needs --max-lora-rank 16" in result.stdout


def test_output_counts_the_layers_of_each_rank(tmp_path: Path) -> None:
    _write(tmp_path / "a", 8, 10, 8)
    result = _run(tmp_path / "a", tmp_path / "b")
    assert "LoRA of rank 16 (2 layers), 20 (1 layer)" in result.stdout
    assert "vLLM needs --max-lora-rank 32" in result.stdout


def test_rank_above_512_is_said(tmp_path: Path) -> None:
    _write(tmp_path / "a", 258)
    result = _run(tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 0
    assert "vLLM cannot serve it: the rank 516 is above 512" in result.stdout
    assert "--max-lora-rank 5" not in result.stdout


def test_whole_modules_are_said(tmp_path: Path) -> None:
    _write(tmp_path / "a", 8, saved={"lm_head.weight": torch.ones(3, 8)})
    result = _run(tmp_path / "a", tmp_path / "b")
    assert "vLLM cannot serve it: the adapter has whole modules" in result.stdout


def test_json_is_one_object(tmp_path: Path) -> None:
    _write(tmp_path / "a", 8, 12)
    result = _run(tmp_path / "a", tmp_path / "b", "--json")
    assert json.loads(result.stdout) == {
        "directory": str(tmp_path / "b"),
        "layers": 2,
        "rank": 24,
        "ranks": {"layers.0.up": 16, "layers.1.up": 24},
        "dtypes": ["float32"],
        "max_lora_rank": 32,
        "vllm": True,
        "obstacles": [],
    }


def test_dtype_is_that_of_the_files(tmp_path: Path) -> None:
    _write(tmp_path / "a", 8)
    assert _run(tmp_path / "a", tmp_path / "b", "--dtype", "bfloat16").exit_code == 0
    tensors = load_file(tmp_path / "b" / "adapter_model.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


def test_missing_adapter_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    result = _run(tmp_path / "none", tmp_path / "b")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("gralora export-lora: ")
    assert len(result.stderr.splitlines()) == 1
    assert "none" in result.stderr


def test_overwrite_replaces_what_was_written_before(tmp_path: Path) -> None:
    _write(tmp_path / "a", 8, 8)
    runs = [_run(tmp_path / "a", tmp_path / "b", *more) for more in ([], [], ["--overwrite"])]
    assert [run.exit_code for run in runs] == [0, 1, 0]
    assert "OUT must be absent or an empty folder" in runs[1].stderr


@pytest.mark.parametrize(
    "arguments", [["a"], ["a", "b", "--dtype", "int8"], ["a", "b", "c"]], ids=" ".join
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert _run(*arguments).exit_code == 2


def test_help_has_examples() -> None:
    assert "gralora export-lora adapter lora --dtype bfloat16" in _run("--help").stdout
