"""Refusals in the words of the command line: options and arguments, not parameters."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from gralora.adapters.stored import StoredLayer
from gralora.adapters.write import write_adapter
from gralora.cli import main
from gralora.nn.spec import make_spec


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with adapters ``a`` of grid 2, ``b`` of grid 4 and a LoRA."""
    for name, k in (("a", 2), ("b", 4)):
        spec = make_spec(8, 8, r=4, k=k, alpha=4, hybrid_r=0, dropout=0.0, use_rslora=False)
        layer = StoredLayer(spec, torch.randn(k, 8 // k, 4), 1e6 * torch.randn(k, 4, 8 // k))
        write_adapter(tmp_path / name, {"up": layer})
    (tmp_path / "lora").mkdir()
    tensors = {f"base_model.model.up.lora_{part}.weight": torch.randn(8, 8) for part in "AB"}
    save_file(tensors, tmp_path / "lora" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["up"]}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(*arguments: str) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(main, arguments)


CASES = {
    "weights": (
        "combine a b out --weights 1",
        "--weights must be one for each adapter, got 1 for 2",
    ),
    "zero weight": (
        "combine a b out --weights 1,0",
        "--weights must be finite numbers other than zero",
    ),
    "k without rank": ("combine a out --k 2", "--k must come with --rank, got --k 2 and no --rank"),
    "rank and k": (
        "combine a out --rank 6 --k 4",
        "up: --rank must be divisible by --k, got --rank 6, --k 4 (divisors: 1, 2, 3, 6)",
    ),
    "k and the layer": (
        "combine a out --rank 6 --k 3",
        "up: in_features must be divisible by --k, got in_features=8, --k 3",
    ),
    "rank of different grids": ("combine a b out", "for up (give --rank to approximate the sum"),
    "k of an import": (
        "import-lora lora out --k 3",
        "in_features must be divisible by --k, got in_features=8, --k 3",
    ),
    "zero k": ("import-lora lora out --k 0", "--k must be at least 1, got --k 0"),
    "out": ("export-lora a b", "OUT must be absent or an empty folder, got b with"),
    "overwrite": ("export-lora a b", "(--overwrite replaces the adapter there)"),
    "a path with equals signs": (
        "inspect r=64,k=4/adapter",
        "ADAPTER must be an existing folder, got r=64,k=4/adapter",
    ),
    "a picture": ("inspect a --plot a.pdf", "--plot must end in .png, got a.pdf"),
    "a folder named k": ("combine k a new", ": k must hold adapter_model.safetensors"),
    "a folder named rank": ("combine a rank new", ": rank must hold adapter_model.safetensors"),
    "a folder named weights": (
        "combine weights a new",
        ": weights must hold adapter_model.safetensors",
    ),
    "a folder named out": ("export-lora out new", ": out must hold adapter_model.safetensors"),
    "a folder named base": (
        "merge base a new",
        ": base must hold model.safetensors or model.safetensors.index.json",
    ),
    "dtype": ("export-lora a out --dtype float16", "must fit --dtype, got numbers up to"),
}


@pytest.mark.parametrize("case", CASES)
def test_refusal_names_what_was_typed(case: str, folder: Path) -> None:
    command, expected = CASES[case]
    if case.startswith("a folder named "):
        (folder / case.rpartition(" ")[2]).mkdir()
        expected = f"gralora {command.split()[0]}{expected}"
    result = _run(*command.split())
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert expected in line
    assert not (folder / "out" / "adapter_config.json").exists()
    assert not (folder / "new").exists()


def test_names_of_modules_stay_as_they_are(folder: Path) -> None:
    tensors = {"base_model.model.out.gralora_A": torch.ones(2, 4, 4)}
    save_file(tensors, folder / "a" / "adapter_model.safetensors")
    path = folder / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": ["out"]}))
    assert ": out must have .gralora_A, .gralora_B" in _run("combine", "a", "b/new").stderr


def test_layout_is_asked_for_as_an_option(folder: Path) -> None:
    (folder / "base").mkdir()
    save_file({"up.weight": torch.randn(8, 8)}, folder / "base" / "model.safetensors")
    result = _run("merge", "base", "a", "out")
    assert "(pass --layout linear for torch.nn.Linear, [out, in], or --layout conv1d" in (
        result.stderr
    )


def test_a_base_and_an_adapter_that_are_swapped_are_told_apart(folder: Path) -> None:
    (folder / "base").mkdir()
    save_file({"up.weight": torch.randn(8, 8)}, folder / "base" / "model.safetensors")
    result = _run("merge", "a", "base", "out")
    assert result.exit_code == 1
    assert result.stderr == (
        "gralora merge: base must hold adapter_model.safetensors (BASE and ADAPTER are swapped?)\n"
    )
    assert "swapped" not in _run("merge", "base", "none", "out").stderr
