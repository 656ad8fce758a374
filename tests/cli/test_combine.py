"""``gralora combine``: what it prints, and how it fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from gralora.adapters.stored import StoredLayer, read_adapter
from gralora.adapters.write import write_adapter
from gralora.cli import main
from gralora.nn.spec import make_spec


def _write(directory: Path, *, k: int = 2, r: int = 4) -> None:
    spec = make_spec(8, 8, r=r, k=k, alpha=r, hybrid_r=0, dropout=0.0, use_rslora=False)
    layer = StoredLayer(spec, torch.randn(k, 8 // k, r), torch.randn(k, r, 8 // k))
    write_adapter(directory, {"up": layer, "down": layer})


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["combine", *map(str, arguments)])


def test_output_says_the_largest_error(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    _write(tmp_path / "b")
    result = _run(tmp_path / "a", tmp_path / "b", tmp_path / "c", "--weights", "1,0.5")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    found = re.search(r": 2 layers, largest relative error (\S+) \((up|down)\)$", line)
    assert found is not None, line
    assert float(found[1]) < 1e-14
    assert "relative error" in result.stderr


def test_weights_take_negative_numbers(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    result = _run(tmp_path / "a", tmp_path / "b", "--weights", "-2")
    assert result.exit_code == 0, result.stderr
    a, b = (read_adapter(tmp_path / name).layers["up"].delta() for name in "ab")
    torch.testing.assert_close(b, -2 * a)


def test_json_has_rank_grid_and_error_of_each_layer(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    _write(tmp_path / "b", k=4)
    result = _run(
        tmp_path / "a", tmp_path / "b", tmp_path / "c", "--rank", "4", "--k", "2", "--json"
    )
    report = json.loads(result.stdout)
    assert report["peft"] is True
    layers = report["layers"]
    assert layers.keys() == {"up", "down"}
    error = layers["up"].pop("relative_error")
    assert 0.01 < error < 1
    assert layers["up"] == {"r": 4, "hybrid_r": 0, "k_out": 2, "k_in": 2}


def test_result_that_peft_cannot_load_says_how_to_get_one(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    options = ("--rank", "4", "--k", "2,4", "--json")
    result = _run(tmp_path / "a", tmp_path / "b", *options)
    assert json.loads(result.stdout)["peft"] is False
    assert "PEFT cannot load this adapter, since its grids are not square" in result.stderr
    assert "gralora combine: for an adapter that PEFT loads, give --rank R and --k K" in (
        result.stderr
    )
    assert _run(tmp_path / "a", tmp_path / "c").stderr.count("PEFT") == 0


def test_error_that_json_has_no_number_for_is_null(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    # The sum is zero, and the rounding of scaled numbers is not.
    result = _run(*[tmp_path / "a"] * 3, tmp_path / "b", "--weights", "0.1,0.2,-0.3", "--json")
    layers = json.loads(result.stdout, parse_constant=pytest.fail)["layers"]
    assert [layer["relative_error"] for layer in layers.values()] == [None, None]


def test_different_grids_are_one_line_and_exit_code_1(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    _write(tmp_path / "b", k=4)
    result = _run(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert result.exit_code == 1
    assert result.stderr.startswith("gralora combine: ranks can be put side by side in")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "c").exists()


def test_forgotten_out_does_not_cost_an_adapter(tmp_path: Path) -> None:
    for name in ("maths", "code"):
        _write(tmp_path / name)
    before = (tmp_path / "code" / "adapter_model.safetensors").read_bytes()
    result = _run(tmp_path / "maths", tmp_path / "code")
    assert result.exit_code == 1
    assert "OUT must be absent or an empty folder, got" in result.stderr
    assert (tmp_path / "code" / "adapter_model.safetensors").read_bytes() == before


def test_overwrite_replaces_an_adapter(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _write(tmp_path / name)
    expected = 3 * read_adapter(tmp_path / "a").layers["up"].delta()
    result = _run(tmp_path / "a", tmp_path / "b", "--weights", "3", "--overwrite")
    assert result.exit_code == 0, result.stderr
    torch.testing.assert_close(read_adapter(tmp_path / "b").layers["up"].delta(), expected)


@pytest.mark.parametrize(
    "arguments",
    [["a"], ["a", "b", "--weights", "x"], ["a", "b", "--rank", "0"], ["a", "b", "--k", "1,2,3"]],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert _run(*arguments).exit_code == 2


def test_help_has_examples() -> None:
    assert "  gralora combine maths code both --weights 0.7,0.3\n" in _run("--help").stdout
