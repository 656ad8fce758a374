"""PiSSA adapters on disk: a difference for everyone, and here the adapter that was trained."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from storage_models import (
    assert_unchanged,
    layout,
    llama,
    our_loaded,
    our_model,
    outputs,
    peft_loaded,
    snapshot,
    train_like,
)
from torch import nn
from torch.distributed.fsdp import fully_shard

import gralora
from gralora.injection.record import injection_state
from gralora.storage.adapter_files import load_adapter, save_adapter
from gralora.storage.state_dict import adapter_state_dict, load_adapter_state_dict

CASES: dict[str, dict[str, Any]] = {
    "square": {},
    "random directions": {"init_weights": "pissa_niter_2"},
    "one block": {"k": 1},
    "hybrid with rsLoRA": {"hybrid_r": 3, "use_rslora": True, "alpha": 5},
    "biases and a head": {"bias": "all", "modules_to_save": ["lm_head"]},
}
EXTENDED: dict[str, dict[str, Any]] = {
    "rectangular": {"k": (2, 4)},
    "patterns with rsLoRA": {
        "rank_pattern": {"v_proj": 4},
        "alpha_pattern": {"q_proj": 3.7},
        "use_rslora": True,
        "hybrid_r": 1,
    },
}
NOTE = "gralora_pissa"
KEY = "base_model.model.model.layers.0.self_attn.q_proj.gralora_A"


def _pissa(base: nn.Module | None = None, **settings: Any) -> nn.Module:
    return our_model(base or llama(attention_bias=True), **{"init_weights": "pissa", **settings})


def _saved(model: nn.Module, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="save_adapter: PEFT cannot load")
        save_adapter(model, folder)


def _metadata(folder: Path) -> dict[str, str]:
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [*CASES, *EXTENDED])
def test_loading_restores_every_bit_of_the_model(
    case: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    base = llama(attention_bias=True).to(dtype)
    model = _pissa(base, **{**CASES, **EXTENDED}[case])
    _saved(model, tmp_path)
    loaded = our_loaded(base, tmp_path)
    before, after = model.state_dict(), loaded.state_dict()
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    assert torch.equal(outputs(loaded), outputs(model))


@pytest.mark.parametrize("case", [*CASES, *EXTENDED])
def test_the_loaded_adapter_is_what_it_was(case: str, tmp_path: Path) -> None:
    model = _pissa(**{**CASES, **EXTENDED}[case])
    _saved(model, tmp_path)
    loaded = our_loaded(llama(attention_bias=True), tmp_path)
    for name in ("q_proj", "v_proj"):
        layers = [each.model.layers[1].self_attn.get_submodule(name) for each in (loaded, model)]
        assert layers[0].adapters == layers[1].adapters


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_the_same_on_the_unmodified_base(case: str, tmp_path: Path) -> None:
    model = _pissa(**CASES[case])
    _saved(model, tmp_path)
    theirs = peft_loaded(llama(attention_bias=True), tmp_path)
    torch.testing.assert_close(outputs(theirs), outputs(model), rtol=1e-4, atol=1e-5)


def test_the_file_has_twice_the_rank(tmp_path: Path) -> None:
    _saved(_pissa(), tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (content["peft_type"], content["r"], content["alpha"]) == ("GRALORA", 16, 32)
    assert layout(tmp_path)[KEY] == ("F32", (2, 16, 16))


def test_saving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    _saved(_pissa(hybrid_r=3, use_rslora=True), tmp_path / "one")
    _saved(our_loaded(llama(attention_bias=True), tmp_path / "one"), tmp_path / "two")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    model = _pissa()
    _saved(model, tmp_path)
    loaded = our_loaded(llama(attention_bias=True), tmp_path)
    for each in (model, loaded):
        train_like(each, seed=5)
    assert torch.equal(outputs(loaded), outputs(model))


def test_the_loaded_model_without_the_adapter_is_the_base(tmp_path: Path) -> None:
    base = llama(attention_bias=True)
    _saved(_pissa(), tmp_path)
    loaded = our_loaded(base, tmp_path)
    gralora.enable_adapters(loaded, False)
    torch.testing.assert_close(outputs(loaded), outputs(base), rtol=1e-4, atol=1e-6)


def test_it_loads_beside_another_of_its_kind(tmp_path: Path) -> None:
    model = _pissa()
    _saved(model, tmp_path)
    other = _pissa(alpha=4)
    load_adapter(other, tmp_path, "second")
    torch.testing.assert_close(outputs(other), outputs(model), rtol=1e-4, atol=1e-5)


def test_a_merged_adapter_is_saved_alike(tmp_path: Path) -> None:
    model = _pissa()
    _saved(model, tmp_path / "one")
    for layer in model.modules():
        if isinstance(layer, gralora.nn.GraLoRALinear):
            layer.merge()
    _saved(model, tmp_path / "two")
    name = "adapter_model.safetensors"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


class Own(nn.Linear):
    """A layer that runs itself, as quantised ones do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def _running_itself(model: nn.Module) -> nn.Module:
    attention = model.model.layers[0].self_attn
    layer = Own(attention.q_proj.in_features, attention.q_proj.out_features)
    layer.load_state_dict(attention.q_proj.state_dict())
    attention.q_proj = layer
    return model


@pytest.mark.parametrize("case", ["square", "hybrid with rsLoRA"])
def test_weights_that_cannot_give_a_part_get_the_difference(case: str, tmp_path: Path) -> None:
    model = _pissa(**CASES[case])
    _saved(model, tmp_path)
    base = _running_itself(llama(attention_bias=True))
    before = {key: value.clone() for key, value in base.state_dict().items()}
    with pytest.warns(UserWarning, match=r"attached as its difference to the base, of twice its r"):
        loaded = load_adapter(base, tmp_path).eval()
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-4, atol=1e-5)
    layer = loaded.model.layers[1].self_attn.q_proj
    assert (layer.adapters["default"].r, layer.adapters["default"].init_weights) == (16, "kaiming")
    assert torch.equal(layer.weight, before["model.layers.1.self_attn.q_proj.weight"])


def test_a_warning_that_is_an_error_changes_nothing(tmp_path: Path) -> None:
    _saved(_pissa(), tmp_path)
    base = _running_itself(llama(attention_bias=True))
    before = snapshot(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match="attached as its difference"):
            load_adapter(base, tmp_path)
    assert_unchanged(base, before)


def test_merging_on_disk_gives_what_the_model_computes(tmp_path: Path) -> None:
    base = llama(attention_bias=True)
    base.save_pretrained(tmp_path / "base")
    model = _pissa(base)
    _saved(model, tmp_path / "adapter")
    gralora.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged = type(base).from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(outputs(merged), outputs(model), rtol=1e-4, atol=1e-5)


def test_exported_lora_has_the_same_outputs(tmp_path: Path) -> None:
    model = _pissa()
    _saved(model, tmp_path / "adapter")
    gralora.export_lora(tmp_path / "adapter", tmp_path / "lora")
    theirs = peft_loaded(llama(attention_bias=True), tmp_path / "lora")
    torch.testing.assert_close(outputs(theirs), outputs(model), rtol=1e-4, atol=1e-5)


def test_state_dict_is_the_difference(tmp_path: Path) -> None:
    model = _pissa()
    _saved(model, tmp_path)
    state, stored = adapter_state_dict(model), load_file(tmp_path / "adapter_model.safetensors")
    assert state.keys() == stored.keys()
    for key, value in stored.items():
        assert torch.equal(state[key], value), key


def test_state_dict_goes_back_into_the_model_in_place() -> None:
    model = _pissa()
    state, before = adapter_state_dict(model), outputs(model)
    train_like(model, seed=7)
    assert not torch.equal(outputs(model), before)
    parameters = [id(parameter) for parameter in model.parameters()]
    load_adapter_state_dict(model, state)
    assert torch.equal(outputs(model), before)
    assert [id(parameter) for parameter in model.parameters()] == parameters


def test_state_dict_that_started_otherwise_is_refused() -> None:
    model = _pissa()
    state = adapter_state_dict(_pissa(alpha=4))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"must have started with the factors of the model's"):
        load_adapter_state_dict(model, state)
    assert_unchanged(model, before)


def test_sharded_model_computes_and_saves_the_same(one_process_group: None, tmp_path: Path) -> None:
    base, model = llama(attention_bias=True), _pissa()
    wanted = outputs(model)
    _saved(model, tmp_path / "whole")
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    torch.testing.assert_close(outputs(model), wanted)
    _saved(model, tmp_path / "sharded")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        files = [tmp_path / folder / name for folder in ("whole", "sharded")]
        assert files[0].read_bytes() == files[1].read_bytes()
    gralora.enable_adapters(model, False)
    torch.testing.assert_close(outputs(model), outputs(base), rtol=1e-4, atol=1e-6)


def test_sharded_weight_does_not_take_its_part_back(one_process_group: None) -> None:
    model = _pissa()
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    text = r"delete_adapter: a weight must be whole to get back .*, got a DTensor"
    with pytest.raises(RuntimeError, match=text):
        gralora.delete_adapter(model, "default")
    assert injection_state(model).active == ("default",)
    assert list(model.model.layers[0].self_attn.q_proj.adapters) == ["default"]


WRONG_NOTES = {
    "no JSON": ("{", "must be a JSON object, got '{'"),
    "a list": ("[1]", "must be a JSON object"),
    "nested without end": ("[" * 100_000, "must be a JSON object"),
    "no rank": ({"r": None}, "r of the config must be an int from 1"),
    "another rank": ({"r": 4}, "must give half the config's rank and its scale, got r=4"),
    "another scale": ({"alpha": 17}, "must give half the config's rank and its scale"),
    "another way": ({"init_weights": "kaiming"}, 'must be "pissa" or "pissa_niter_N"'),
    "a strange way": ({"init_weights": "pissa_x"}, "init_weights must be"),
    "a strange layer": ({"rank_pattern": {"x": 8}, "alpha_pattern": {"x": 16}}, "modules that the"),
}


@pytest.mark.parametrize("case", WRONG_NOTES)
def test_a_note_that_is_not_the_files_is_refused(case: str, tmp_path: Path) -> None:
    change, text = WRONG_NOTES[case]
    _saved(_pissa(), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    metadata, tensors = _metadata(tmp_path), load_file(path)
    if isinstance(change, dict):
        change = json.dumps(json.loads(metadata[NOTE]) | change)
    save_file(tensors, path, {**metadata, NOTE: change})
    base = llama(attention_bias=True)
    before = snapshot(base)
    with pytest.raises(ValueError, match=text):
        load_adapter(base, tmp_path)
    assert_unchanged(base, before)


def test_ordinary_adapters_get_no_note(tmp_path: Path) -> None:
    _saved(our_model(llama(), init_weights="orthogonal"), tmp_path)
    assert NOTE not in _metadata(tmp_path)


def test_loading_finds_no_singular_vectors_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _pissa()
    _saved(model, tmp_path)
    monkeypatch.delattr(torch.linalg, "svd")
    assert torch.equal(outputs(our_loaded(llama(attention_bias=True), tmp_path)), outputs(model))


def test_copies_of_the_model_stay_as_they_are(tmp_path: Path) -> None:
    base = llama(attention_bias=True)
    before = copy.deepcopy(base.state_dict())
    _saved(_pissa(base), tmp_path)
    our_loaded(base, tmp_path)
    for key, value in before.items():
        assert torch.equal(base.state_dict()[key], value), key
