"""The scale that was trained is the scale that is loaded, to the last bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from storage_models import llama, our_loaded, our_model, outputs, peft_loaded

from gralora.injection.record import adapter_records
from gralora.storage.adapter_files import load_adapter, save_adapter
from gralora.storage.scale import bake

# 16/sqrt(6) is reached by no alpha/6, 8/sqrt(12) and 16/sqrt(8) are.
RSLORA: dict[str, dict[str, Any]] = {
    "rank 8": {"r": 8, "alpha": 16},
    "rank 8 + 4": {"r": 8, "hybrid_r": 4, "alpha": 8},
    "rank 6": {"r": 6, "alpha": 16},
    "rank 4, whole scale": {"r": 4, "alpha": 3},
    "rank 6, float alpha": {"r": 6, "alpha": 1.1},
}


def _scaling(model: torch.nn.Module) -> float:
    scales = {spec.scaling for spec in adapter_records(model)["default"].targets.values()}
    assert len(scales) == 1
    return scales.pop()


@pytest.mark.parametrize("case", RSLORA)
def test_rslora_loads_with_the_same_float(case: str, tmp_path: Path) -> None:
    model = our_model(llama(), use_rslora=True, **RSLORA[case])
    save_adapter(model, tmp_path)
    again = our_loaded(llama(), tmp_path)
    rank = RSLORA[case]["r"] + RSLORA[case].get("hybrid_r", 0)
    assert _scaling(again) == RSLORA[case]["alpha"] / math.sqrt(rank)
    assert torch.equal(outputs(again), outputs(model))


@pytest.mark.parametrize("case", RSLORA)
def test_rslora_is_in_pefts_alpha(case: str, tmp_path: Path) -> None:
    model = our_model(llama(), use_rslora=True, **RSLORA[case])
    save_adapter(model, tmp_path)
    theirs = peft_loaded(llama(), tmp_path)
    layer = theirs.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == pytest.approx(_scaling(model), rel=3e-16)
    torch.testing.assert_close(outputs(theirs), outputs(model), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("alpha", [16, 16.0, 12.7, 0, -2, 1e-20, 3 * 2**40])
def test_alpha_loads_with_the_same_float(alpha: float, tmp_path: Path) -> None:
    model = our_model(llama(), r=6, alpha=alpha, hybrid_r=1)
    save_adapter(model, tmp_path)
    assert _scaling(our_loaded(llama(), tmp_path)) == alpha / 7
    layer = peft_loaded(llama(), tmp_path).base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == alpha / 7


@pytest.mark.parametrize(
    ("alpha", "written"), [(16.0, "16"), (12.5, "12.5"), (None, "16")], ids=str
)
def test_alpha_is_an_int_where_it_is_whole(
    alpha: float | None, written: str, tmp_path: Path
) -> None:
    save_adapter(our_model(llama(), alpha=alpha), tmp_path)
    value = json.loads((tmp_path / "adapter_config.json").read_text(), parse_float=str)["alpha"]
    assert str(value) == written


def test_a_note_that_contradicts_the_config_is_refused(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    save_adapter(our_model(llama(), use_rslora=True), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for note in ("17", "NaN", "1e999", "[]", '"16"', "[" * 100_000):
        save_file(load_file(path), path, metadata={**metadata, "gralora_rslora_alpha": note})
        with pytest.raises(ValueError, match="gralora_rslora_alpha of the tensors must give"):
            load_adapter(llama(), tmp_path)


@given(st.floats(1e-3, 1e3), st.integers(1, 512))
def test_a_baked_alpha_gives_the_nearest_scale(scaling: float, rank: int) -> None:
    alpha = bake(scaling, rank)
    missed = abs(alpha / rank - scaling)
    assert missed <= math.ulp(scaling)
    for other in (math.nextafter(alpha, math.inf), math.nextafter(alpha, -math.inf)):
        assert missed <= abs(other / rank - scaling)
