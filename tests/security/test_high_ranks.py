"""Adapters of a few megabytes whose grid asks for many gigabytes, and what work really takes."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from security_checks import in_time, tree
from security_files import (
    CONFIG,
    PREFIX,
    TENSORS,
    adapter_config,
    header_of,
    write_safetensors,
)
from security_memory import growth

from gralora.adapters import room
from gralora.adapters.export_lora import export_lora
from gralora.adapters.inspection import inspect_adapter
from gralora.adapters.spectrum import memory_of_spectrum
from gralora.adapters.stored import read_adapter
from gralora.cli import main

MIB = 2**20
GRID = 128
# What libraries take when they are first used: imports, threads and their buffers.
FIRST_USE = 64 * MIB


def _write(folder: Path, grid: int, height: int) -> Path:
    """An adapter of one square layer: `grid` blocks per axis, each `height` wide and of rank 1."""
    folder.mkdir()
    factors = {".gralora_A": [grid, height, grid], ".gralora_B": [grid, grid, height]}
    header = header_of({f"{PREFIX}up{name}": shape for name, shape in factors.items()})
    data = torch.randn(2 * grid * grid * height, generator=torch.Generator().manual_seed(0))
    write_safetensors(folder / TENSORS, header, data.numpy().tobytes())
    content = adapter_config(gralora_k=grid, r=grid, modules_to_save=None)
    (folder / CONFIG).write_text(json.dumps(content))
    return folder


COMMANDS = {
    "inspect": ["adapter"],
    "export-lora": ["adapter", "out"],
    "export-lora --dtype": ["adapter", "out", "--dtype", "bfloat16"],
    "combine": ["adapter", "adapter", "out", "--rank", "1", "--k", "1"],
}


@pytest.mark.parametrize("case", COMMANDS)
def test_ranks_that_memory_cannot_hold_are_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 16 MB that stand for matrices of 16384 x 16384.
    _write(tmp_path / "adapter", GRID, GRID)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(room, "free_memory", lambda: 2**30)
    command, before = case.split()[0], tree(tmp_path)
    results = []
    with in_time():
        grown = growth(lambda: results.append(CliRunner().invoke(main, [command, *COMMANDS[case]])))
    assert grown < 128 * MIB
    (result,) = results
    assert result.exit_code == 1
    (line,) = (line for line in result.stderr.splitlines() if line)
    assert line.startswith(f"gralora {command}: ")
    assert "must fit into memory, got " in line
    assert "for 1.1 GB that are free" in line
    assert tree(tmp_path) == before


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16], ids=str)
def test_an_export_takes_no_more_than_it_asks_for(
    dtype: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = read_adapter(_write(tmp_path / "adapter", 32, 64))
    asked: list[int] = []
    # The package gives its name to the function in it.
    module = import_module("gralora.adapters.export_lora")
    monkeypatch.setattr(module, "check_room", lambda needed, *_, **__: asked.append(needed))
    grown = growth(lambda: export_lora(stored, tmp_path / "out", dtype=dtype))
    assert grown <= asked[0] + FIRST_USE


@pytest.mark.parametrize(("grid", "height"), [(24, 24), (16, 64)], ids=str)
def test_an_inspection_takes_no_more_than_it_asks_for(
    grid: int, height: int, tmp_path: Path
) -> None:
    stored = read_adapter(_write(tmp_path / "adapter", grid, height))
    inspect_adapter(read_adapter(_write(tmp_path / "small", 2, 4)))
    asked = max(map(memory_of_spectrum, stored.layers.values()))
    assert growth(lambda: inspect_adapter(stored)) <= asked + FIRST_USE
