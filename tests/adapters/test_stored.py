"""read_adapter: what the files say, without a model, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_disk import Q0, V1, edit_config, llama, our_adapter, peft_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from gralora.adapters.stored import read_adapter

PREFIX = "base_model.model."
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hybrid": {"hybrid_r": 4},
    "one block": {"gralora_k": 1},
    "eight blocks": {"gralora_k": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_deltas_are_pefts(kind: str, tmp_path: Path) -> None:
    model = peft_adapter(tmp_path, **KINDS[kind])
    stored = read_adapter(tmp_path)
    assert len(stored.layers) == 4
    for name, layer in stored.layers.items():
        theirs = model.base_model.model.get_submodule(name).get_delta_weight("default")
        torch.testing.assert_close(layer.delta(torch.float64).float(), theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {"k": (2, 4), "hybrid_r": 2},
        {"rank_pattern": {Q0: 16}, "alpha_pattern": {V1: 3}, "k_pattern": {V1: (2, 4)}},
        {"use_rslora": True},
    ],
    ids=["rectangular", "patterns", "rsLoRA"],
)
def test_deltas_of_what_only_this_package_saves_are_the_layers(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model = our_adapter(tmp_path, **settings)
    for name, layer in read_adapter(tmp_path).layers.items():
        module: Any = model.get_submodule(name)
        assert layer.spec == module.adapters["default"]
        with torch.no_grad():
            assert torch.equal(layer.delta(), module.delta_weight())


def test_widths_are_the_layers(tmp_path: Path) -> None:
    peft_adapter(tmp_path)
    layer = read_adapter(tmp_path).layers[V1]
    assert (layer.in_features, layer.out_features) == (32, 16)


def test_delta_takes_the_dtype_asked_for(tmp_path: Path) -> None:
    peft_adapter(tmp_path)
    assert read_adapter(tmp_path).layers[Q0].delta(torch.bfloat16).dtype == torch.bfloat16


def _tensor(model: Any, name: str) -> Tensor:
    return model.state_dict()[f"{PREFIX}{name}"]


def test_trained_biases_have_the_base_models_names(tmp_path: Path) -> None:
    base = llama(attention_bias=True)
    model = peft_adapter(tmp_path, base, bias="gralora_only")
    stored = read_adapter(tmp_path)
    assert set(stored.biases) == {f"{name}.bias" for name in stored.layers}
    assert torch.equal(stored.biases[f"{Q0}.bias"], _tensor(model, f"{Q0}.base_layer.bias"))


def test_biases_of_other_modules_are_found(tmp_path: Path) -> None:
    peft_adapter(tmp_path, llama(attention_bias=True), bias="all")
    stored = read_adapter(tmp_path)
    assert "model.layers.0.self_attn.o_proj.bias" in stored.biases
    assert not stored.frozen


def test_modules_that_are_saved_whole_have_the_base_models_names(tmp_path: Path) -> None:
    model = peft_adapter(tmp_path, modules_to_save=["lm_head", "model.norm"])
    stored = read_adapter(tmp_path)
    assert set(stored.saved) == {"lm_head.weight", "model.norm.weight"}
    trained = _tensor(model, "lm_head.modules_to_save.default.weight")
    assert torch.equal(stored.saved["lm_head.weight"], trained)


def test_a_frozen_head_that_peft_has_copied_is_told_apart(tmp_path: Path) -> None:
    peft_adapter(tmp_path, target_modules=["q_proj", "lm_head"])
    stored = read_adapter(tmp_path)
    assert "lm_head" in stored.layers
    assert "lm_head.weight" in stored.frozen
    assert not stored.saved


def _change(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


A, B = f"{PREFIX}{Q0}.gralora_A", f"{PREFIX}{Q0}.gralora_B"
DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "a factor is missing": (lambda t: t.pop(B), "must have .gralora_A, .gralora_B"),
    "a part of a hybrid is there": (
        lambda t: t.update({f"{PREFIX}{Q0}.gralora_A_general.weight": torch.zeros(4, 32)}),
        "hybrid_r=0",
    ),
    "no block": (lambda t: t.update({A: torch.zeros(0, 16, 8)}), "sizes from 1 up"),
    "two sizes": (lambda t: t.update({A: torch.zeros(16, 8)}), "must have three sizes"),
    "another grid": (lambda t: t.update({A: torch.zeros(4, 8, 8)}), "must have shape"),
    "another rank": (lambda t: t.update({B: torch.zeros(2, 4, 16)}), "must have shape"),
    "integers": (lambda t: t.update({A: torch.zeros(2, 16, 8, dtype=torch.int32)}), "floating"),
    "a foreign tensor": (
        lambda t: t.update({f"{PREFIX}x.lora_magnitude": torch.zeros(1)}),
        "must be a factor",
    ),
    "a key without the prefix": (lambda t: t.update({"x": torch.zeros(1)}), "begin with"),
    "a bias that nothing asks for": (
        lambda t: t.update({f"{PREFIX}{Q0}.bias": torch.zeros(32)}),
        "must be a factor",
    ),
    "nothing adapted": (lambda t: t.clear(), "must hold factors"),
    "a module that the config does not target": (
        lambda t: t.update(
            {f"{PREFIX}x.gralora_A": t[A].clone(), f"{PREFIX}x.gralora_B": t[B].clone()}
        ),
        "do not belong together",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_tensors_that_disagree_are_refused(damage: str, tmp_path: Path) -> None:
    peft_adapter(tmp_path)
    change, message = DAMAGES[damage]
    _change(tmp_path, change)
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        read_adapter(tmp_path)
    assert str(caught.value).startswith("read_adapter: ")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 16}, "must have shape"),
        ({"gralora_k": 3}, "must be divisible"),
        ({"peft_type": "LORA"}, "peft_type must be"),
        ({"alpha": "large"}, "alpha of the config"),
        ({"rank_pattern": {"x": 4}}, "would change the result"),
        ({"peft_type": "GRALORA_EXT", "rank_pattern": {"x": 4}}, "must name modules"),
    ],
    ids=["rank", "grid", "method", "alpha", "pattern", "unknown module"],
)
def test_a_config_that_disagrees_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    peft_adapter(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        read_adapter(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")], ids=str)
def test_safe_refuses_numbers_that_are_not_finite(number: float, tmp_path: Path) -> None:
    peft_adapter(tmp_path)
    _change(tmp_path, lambda tensors: tensors[A].view(-1)[3:4].fill_(number))
    assert not read_adapter(tmp_path).layers[Q0].A.isfinite().all()
    with pytest.raises(ValueError, match=r"must be finite.*1 of 8 tensors.*q_proj.gralora_A"):
        read_adapter(tmp_path, safe=True)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="read_adapter: directory must be an existing"):
        read_adapter(tmp_path / "nothing")
