"""``gralora inspect``: what it prints, draws, and how it fails."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from gralora.adapters.stored import StoredLayer
from gralora.adapters.write import write_adapter
from gralora.cli import main
from gralora.nn.spec import make_spec

command = importlib.import_module("gralora.cli.inspect")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """One layer of two blocks per axis, in which one block alone is not zero."""
    spec = make_spec(8, 6, r=4, k=2, alpha=8, hybrid_r=0, dropout=0.0, use_rslora=False)
    A, B = torch.zeros(2, 4, 4), torch.zeros(2, 4, 3)
    A[1, 0, 0], B[0, 2, 1] = 3.0, 1.0
    path = tmp_path / "adapter"
    write_adapter(path, {"layers.0.up": StoredLayer(spec, A, B)}, base_model_name_or_path="base")
    return path


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


def test_table_has_each_layer_with_its_numbers(adapter: Path) -> None:
    result = _run(adapter)
    assert result.exit_code == 0
    (line,) = [line for line in result.stdout.splitlines() if "layers.0.up" in line]
    cells = [cell.strip() for cell in line.strip("│ ").split("│")]
    assert cells == ["layers.0.up", "6 x 8", "2", "4", "56", "6", "inf", "6", "1.0", "1"]


def test_headline_has_base_parameters_and_norm(adapter: Path) -> None:
    text = " ".join(_run(adapter).stdout.split())
    assert "on base: 1 layer, 56 parameters, ‖ΔW‖ 6" in text


def test_json_is_one_object(adapter: Path) -> None:
    found = json.loads(_run(adapter, "--json").stdout)
    layers = found.pop("layers")
    assert found == {
        "directory": str(adapter),
        "base_model": "base",
        "parameters": 56,
        "other_parameters": 0,
        "norm": 6.0,
    }
    assert layers == {
        "layers.0.up": {
            "in_features": 8,
            "out_features": 6,
            "r": 4,
            "k_out": 2,
            "k_in": 2,
            "hybrid_r": 0,
            "alpha": 8,
            "scaling": 2.0,
            "dtype": "float32",
            "parameters": 56,
            "norm": 6.0,
            "block_norms": [[0.0, 6.0], [0.0, 0.0]],
            "block_spread": None,
            "largest_rank": 6,
            "entropy_rank": 1.0,
            "energy_rank": 1,
        }
    }


def test_plot_is_a_png(adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = _run(adapter, "--plot", tmp_path / "a.png")
    assert result.exit_code == 0
    assert result.stderr == f"plot written to {tmp_path / 'a.png'}\n"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_missing_matplotlib_is_one_line(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(command, "_measure", pytest.fail)
    result = _run(adapter, "--plot", tmp_path / "a.png")
    assert result.exit_code == 1
    assert result.stderr.startswith("gralora inspect: a plot needs matplotlib")
    assert len(result.stderr.splitlines()) == 1


def test_plot_that_cannot_be_written_is_refused_before_anything_is_measured(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(command, "_measure", pytest.fail)
    (tmp_path / "file").write_text("")
    result = _run(adapter, "--plot", tmp_path / "file" / "a.png")
    assert result.exit_code == 1
    assert "must lie in an existing folder, got the file" in result.stderr


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_plot_never_takes_the_place_of_the_adapter(
    name: str, adapter: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    before = (adapter / name).read_bytes()
    result = _run(adapter, "--plot", adapter / name)
    assert result.exit_code == 1
    assert result.stderr == f"gralora inspect: --plot must end in .png, got {adapter / name}\n"
    assert (adapter / name).read_bytes() == before


def test_missing_adapter_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    result = _run(tmp_path / "none")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("gralora inspect: ")


def test_wrong_usage_is_exit_code_2() -> None:
    assert _run().exit_code == 2


def test_help_has_examples() -> None:
    assert "  gralora inspect adapter --plot blocks.png\n" in _run("--help").stdout
