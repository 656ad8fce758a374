"""The same files for PEFT and for us: each loads what the other saved and computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from storage_models import (
    classifier,
    layout,
    llama,
    our_loaded,
    our_model,
    outputs,
    peft_loaded,
    peft_saved,
)
from torch import nn

from gralora.storage.adapter_files import save_adapter

BIASED = {"attention_bias": True, "mlp_bias": True}
BASES = {
    "plain": llama,
    "biased": lambda: llama(**BIASED),
    "tied": lambda: llama(tie_word_embeddings=True),
    "classifier": classifier,
    "bf16": lambda: llama().to(torch.bfloat16),
    "deep": lambda: llama(num_hidden_layers=4),
}
# Settings that are spelled alike in both configurations; the first entry is the base model.
SHARED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("plain", {}),
    "hybrid": ("plain", {"hybrid_r": 3}),
    "regular expression": ("plain", {"target_modules": r".*\.1\..*(gate|o)_proj"}),
    "all linear layers": ("plain", {"target_modules": "all-linear"}),
    "all of many linear layers": ("deep", {"target_modules": "all-linear"}),
    "some of many linear layers": ("deep", {"target_modules": r".*[012]\..*(q|k|v|o|up)_proj"}),
    "layers to transform": ("plain", {"layers_to_transform": [1]}),
    "layers pattern": ("plain", {"layers_to_transform": [0], "layers_pattern": "layers"}),
    "bias of all": ("biased", {"bias": "all"}),
    "bias of the targets": ("biased", {"bias": "gralora_only"}),
    "saved head": ("plain", {"modules_to_save": ["lm_head"]}),
    "saved score": ("classifier", {"modules_to_save": ["score"]}),
    "saved score by task": ("classifier", {"task_type": "SEQ_CLS"}),
    "saved norms and bias": ("biased", {"modules_to_save": ["norm"], "bias": "gralora_only"}),
    "bf16 base": ("bf16", {"hybrid_r": 2}),
    "bf16 base with saved head": ("bf16", {"modules_to_save": ["lm_head"]}),
    "fractional alpha": ("plain", {"alpha": 12.7}),
    "negative alpha": ("plain", {"alpha": -30}),
}


def _base(name: str) -> nn.Module:
    return BASES[name]()


def _assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # The two compute in another order; 16-bit outputs are rounded after it.
    tolerance = 2e-2 if expected.dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", SHARED)
def test_an_adapter_saved_by_peft_gives_the_same_outputs_here(case: str, tmp_path: Path) -> None:
    name, settings = SHARED[case]
    expected = peft_saved(_base(name), tmp_path, **settings)
    assert not torch.allclose(outputs(_base(name)), expected, rtol=0.05, atol=0.05)
    _assert_same(outputs(our_loaded(_base(name), tmp_path)), expected)


@pytest.mark.parametrize("case", SHARED)
def test_an_adapter_saved_here_gives_the_same_outputs_in_peft(case: str, tmp_path: Path) -> None:
    name, settings = SHARED[case]
    model = our_model(_base(name), **settings)
    save_adapter(model, tmp_path)
    assert not torch.allclose(outputs(_base(name)), outputs(model), rtol=0.05, atol=0.05)
    _assert_same(outputs(peft_loaded(_base(name), tmp_path)), outputs(model))


@pytest.mark.parametrize("case", SHARED)
def test_both_write_the_same_keys_shapes_and_dtypes(case: str, tmp_path: Path) -> None:
    name, settings = SHARED[case]
    peft_saved(_base(name), tmp_path / "peft", **settings)
    save_adapter(our_model(_base(name), **settings), tmp_path / "ours")
    assert layout(tmp_path / "ours") == layout(tmp_path / "peft")


@pytest.mark.parametrize("case", SHARED)
def test_both_write_the_same_fields(case: str, tmp_path: Path) -> None:
    name, settings = SHARED[case]
    peft_saved(_base(name), tmp_path / "peft", **settings)
    save_adapter(our_model(_base(name), **settings), tmp_path / "ours")
    ours, theirs = (
        json.loads((tmp_path / side / "adapter_config.json").read_text())
        for side in ("ours", "peft")
    )
    assert ours.keys() == theirs.keys()
    resolved = {
        "target_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
        "peft_version", "init_weights",
    }  # fmt: skip
    for field in ours.keys() - resolved:
        assert ours[field] == theirs[field], field
        assert type(ours[field]) is type(theirs[field]), field


@pytest.mark.parametrize("case", SHARED)
def test_a_round_trip_here_is_exact(case: str, tmp_path: Path) -> None:
    name, settings = SHARED[case]
    model = our_model(_base(name), **settings)
    save_adapter(model, tmp_path / "first")
    again = our_loaded(_base(name), tmp_path / "first")
    assert torch.equal(outputs(again), outputs(model))
    save_adapter(again, tmp_path / "second")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_a_16_bit_adapter_of_peft_loads_as_peft_loads_it(tmp_path: Path) -> None:
    base = _base("bf16")
    peft_saved(base, tmp_path)
    _cast_file(tmp_path, torch.bfloat16)
    theirs = peft_loaded(base, tmp_path)
    ours = our_loaded(base, tmp_path)
    layer = ours.model.layers[0].self_attn.q_proj
    peft_layer = theirs.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.gralora_A["default"].dtype is peft_layer.gralora_A["default"].dtype
    assert torch.equal(layer.gralora_A["default"], peft_layer.gralora_A["default"])
    _assert_same(outputs(ours), outputs(theirs))


def _cast_file(directory: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import load_file, save_file

    path = directory / "adapter_model.safetensors"
    save_file({key: value.to(dtype) for key, value in load_file(path).items()}, path)


def test_adapter_dtype_overrides_the_dtype_of_the_layer(tmp_path: Path) -> None:
    peft_saved(_base("bf16"), tmp_path)
    model = our_loaded(_base("bf16"), tmp_path, adapter_dtype=torch.bfloat16)
    assert model.model.layers[0].self_attn.q_proj.gralora_A["default"].dtype is torch.bfloat16


def test_a_16_bit_adapter_is_saved_in_16_bits(tmp_path: Path) -> None:
    peft_saved(_base("bf16"), tmp_path)
    model = our_loaded(_base("bf16"), tmp_path, adapter_dtype=torch.bfloat16)
    save_adapter(model, tmp_path / "again")
    assert {dtype for dtype, _ in layout(tmp_path / "again").values()} == {"BF16"}


def test_dropout_is_kept_both_ways(tmp_path: Path) -> None:
    peft_saved(_base("plain"), tmp_path, gralora_dropout=0.25)
    model = our_loaded(_base("plain"), tmp_path)
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.adapters["default"].dropout == 0.25
    save_adapter(model, tmp_path / "again")
    assert peft_loaded(_base("plain"), tmp_path / "again").peft_config[
        "default"
    ].gralora_dropout == 0.25  # fmt: skip


def test_the_names_of_targets_are_saved_in_full(tmp_path: Path) -> None:
    save_adapter(our_model(_base("plain"), target_modules=r".*1.*q_proj|.*down_proj"), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == [
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
    ]


def test_layers_to_transform_is_resolved_in_the_file(tmp_path: Path) -> None:
    settings = {"layers_to_transform": [1], "layers_pattern": "layers"}
    save_adapter(our_model(_base("plain"), **settings), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["layers_to_transform"] is None
    assert config["layers_pattern"] is None


class Ambiguous(nn.Module):
    """The name of the layer `0` is the end of another's."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.add_module("0", nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule("0")(self.block(x))


def _ambiguous() -> nn.Module:
    torch.manual_seed(3)
    return Ambiguous().eval()


def test_a_name_that_ends_others_is_saved_as_an_expression(tmp_path: Path) -> None:
    model = our_model(_ambiguous(), target_modules=r"0", r=4)
    x = torch.randn(5, 8)
    expected = model(x)
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == "0"
    theirs = peft_loaded(_ambiguous(), tmp_path)
    assert not hasattr(theirs.base_model.model.block[0], "gralora_A")
    _assert_same(theirs(x), expected)
    again = our_loaded(_ambiguous(), tmp_path)
    assert type(again.block[0]) is nn.Linear
    assert torch.equal(again(x), expected)
