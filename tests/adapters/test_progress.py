"""Callbacks of progress: one call for each step, from the first to the last."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loose_layers import random_layer
from safetensors.torch import save_file

from gralora.adapters import combine, convert, export_lora, import_lora, inspect_adapter
from gralora.adapters.write import write_adapter

RUNS: dict[str, tuple[int, Callable[[Path, Any], Any]]] = {
    "combine": (3, lambda path, progress: combine([path / "a"], path / "out", progress=progress)),
    "combine in a rank": (
        3,
        lambda path, progress: combine([path / "a"], path / "out", rank=4, progress=progress),
    ),
    "export_lora": (
        3,
        lambda path, progress: export_lora(path / "a", path / "out", progress=progress),
    ),
    "import_lora": (
        3,
        lambda path, progress: import_lora(path / "lora", path / "out", k=2, progress=progress),
    ),
    "inspect_adapter": (3, lambda path, progress: inspect_adapter(path / "a", progress=progress)),
    "convert": (2, lambda path, progress: convert(path / "fork", path / "out", progress=progress)),
}


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    """A folder with an adapter, a LoRA and one of the fork, three layers each."""
    names = ("x", "y", "z")
    write_adapter(tmp_path / "a", {name: random_layer() for name in names})
    tensors = {
        "lora": {f"{name}.lora_{part}.weight": (8, 8) for name in names for part in "AB"},
        "fork": {f"{name}.gralora_{part}": (2, 4, 8) for name in names for part in "A"}
        | {f"{name}.gralora_B": (2, 8, 4) for name in names},
    }
    configs = {
        "lora": {"peft_type": "LORA", "r": 8, "lora_alpha": 8},
        "fork": {"peft_type": "GRALORA", "r": 8, "gralora_alpha": 8, "gralora_k": 2},
    }
    for kind, shapes in tensors.items():
        (tmp_path / kind).mkdir()
        values = {f"base_model.model.{key}": torch.randn(shape) for key, shape in shapes.items()}
        save_file(values, tmp_path / kind / "adapter_model.safetensors")
        text = json.dumps({**configs[kind], "target_modules": list(names)})
        (tmp_path / kind / "adapter_config.json").write_text(text)
    return tmp_path


@pytest.mark.parametrize("case", RUNS)
def test_each_step_is_told(case: str, adapters: Path) -> None:
    count, run = RUNS[case]
    told: list[tuple[int, int]] = []
    run(adapters, lambda done, total: told.append((done, total)))
    assert told == [(step, count) for step in range(1, count + 1)]
