"""LoRAs that nobody vouches for: a clean error or an adapter, and nothing written besides."""

from __future__ import annotations

import contextlib
import json
import struct
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loose_layers import random_layer
from safetensors.torch import save, save_file

from gralora.adapters.export_lora import export_lora
from gralora.adapters.import_lora import import_lora
from gralora.adapters.stored import read_adapter
from gralora.adapters.write import write_adapter

CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["up"],
    "rank_pattern": {},
    "alpha_pattern": {},
    "bias": "none",
    "modules_to_save": None,
    "use_rslora": False,
    "lora_dropout": 0.0,
    "init_lora_weights": True,
    "task_type": None,
    "base_model_name_or_path": None,
}
TENSORS = {
    "base_model.model.up.lora_A.weight": torch.ones(2, 4),
    "base_model.model.up.lora_B.weight": torch.ones(8, 2),
}
BLOB = save(TENSORS)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=4,
)
MANY = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _import(directory: Path, config: Any, blob: bytes) -> None:
    """Import; anything but the documented errors passes through."""
    lora, out = directory / "lora", directory / "out"
    lora.mkdir(exist_ok=True)
    (lora / "adapter_config.json").write_text(json.dumps(config))
    (lora / "adapter_model.safetensors").write_bytes(blob)
    with warnings.catch_warnings(), contextlib.suppress(OSError, ValueError, TypeError):
        warnings.simplefilter("ignore", UserWarning)
        import_lora(lora, out, k=2)
    if out.exists():
        read_adapter(out)
    assert {path.name for path in directory.iterdir()} <= {"lora", "out"}


@MANY
@given(field=st.sampled_from(sorted(CONFIG)), value=VALUES)
def test_any_value_of_a_field_is_read_or_refused(tmp_path: Path, field: str, value: Any) -> None:
    _import(tmp_path, {**CONFIG, field: value}, BLOB)


@MANY
@given(data=st.data())
def test_any_damage_of_the_tensors_is_refused_or_harmless(tmp_path: Path, data: Any) -> None:
    blob = bytearray(BLOB)
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(blob)))
    _import(tmp_path, CONFIG, bytes(blob if data.draw(st.booleans()) else blob[:cut]))


@pytest.mark.parametrize(
    "key",
    [
        "up.lora_A.weight",
        "base_model.model..lora_A.weight",
        "base_model.model.up.lora_embedding_A",
        "base_model.model.up.lora_magnitude_vector.weight",
        "base_model.model.up.lora_A.bias",
        "base_model.model.other.bias",
    ],
)
def test_other_keys_are_refused(key: str, tmp_path: Path) -> None:
    save_file({**TENSORS, key: torch.ones(2, 4)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ValueError, match="import_lora: "):
        import_lora(tmp_path, tmp_path / "out", k=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (4,), (2, 0), (3, 4)], ids=str)
def test_other_shapes_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensors = {**TENSORS, "base_model.model.up.lora_A.weight": torch.ones(shape)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ValueError, match=r"import_lora: .*lora_A"):
        import_lora(tmp_path, tmp_path / "out", k=2)


def test_header_that_promises_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    _write_raw(tmp_path, struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(ValueError, match="must have a header of at most"):
        import_lora(tmp_path, tmp_path / "out", k=2)


def _write_raw(directory: Path, blob: bytes) -> None:
    (directory / "adapter_model.safetensors").write_bytes(blob)
    (directory / "adapter_config.json").write_text(json.dumps(CONFIG))


def test_long_names_cost_no_time(tmp_path: Path) -> None:
    name = ".".join("a" * 300_000)
    save_file(
        {
            f"base_model.model.{name}.lora_A.weight": torch.ones(2, 4),
            f"base_model.model.{name}.lora_B.weight": torch.ones(8, 2),
        },
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    start = time.process_time()
    with pytest.raises(ValueError, match=r"import_lora: .*(characters|printable)"):
        import_lora(tmp_path, tmp_path / "out", k=2)
    assert time.process_time() - start < 5


def test_export_refuses_names_that_no_module_has(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", {"a" * 900: random_layer()})
    export_lora(tmp_path / "a", tmp_path / "b")
    stored = read_adapter(tmp_path / "a")
    layers = {"a" * 1001: next(iter(stored.layers.values()))}
    with pytest.raises(ValueError, match="export_lora: names of tensors must have at most 1000"):
        export_lora(replace(stored, layers=layers), tmp_path / "c")
    assert not (tmp_path / "c").exists()
