"""What PEFT stores beside an adapter, or stores differently from how it is meant here."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from storage_models import (
    assert_unchanged,
    layout,
    llama,
    our_loaded,
    our_model,
    outputs,
    peft_loaded,
    peft_saved,
    snapshot,
)
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from gralora.storage.adapter_files import load_adapter, save_adapter

EXACT = {"rtol": 2e-5, "atol": 2e-5}
WEIGHT = "base_model.model.lm_head.base_layer.weight"


def test_a_targeted_head_loads_though_peft_stores_its_frozen_weight(tmp_path: Path) -> None:
    expected = peft_saved(llama(), tmp_path, target_modules=["lm_head"])
    assert WEIGHT in layout(tmp_path)
    torch.testing.assert_close(outputs(our_loaded(llama(), tmp_path)), expected, **EXACT)


def test_a_targeted_head_saved_here_loads_in_peft(tmp_path: Path) -> None:
    model = our_model(llama(), target_modules=["lm_head"])
    save_adapter(model, tmp_path)
    assert WEIGHT not in layout(tmp_path)
    torch.testing.assert_close(outputs(peft_loaded(llama(), tmp_path)), outputs(model), **EXACT)


def test_a_frozen_weight_of_another_base_model_is_refused(tmp_path: Path) -> None:
    peft_saved(llama(), tmp_path, target_modules=["lm_head"])
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    before = snapshot(model)
    with pytest.raises(ValueError, match="must equal the model's, got other values"):
        load_adapter(model, tmp_path)
    assert_unchanged(model, before)


def test_duplicates_of_biases_in_saved_modules_are_accepted(tmp_path: Path) -> None:
    base = llama(attention_bias=True)
    settings = {"bias": "all", "modules_to_save": ["o_proj"]}
    expected = peft_saved(base, tmp_path / "peft", **settings)
    prefix = "base_model.model.model.layers.0.self_attn.o_proj"
    duplicates = {key for key in layout(tmp_path / "peft") if ".o_proj.modules_to_save." in key}
    duplicates |= {key for key in layout(tmp_path / "peft") if ".o_proj.original_module." in key}
    assert f"{prefix}.modules_to_save.bias" in duplicates
    torch.testing.assert_close(outputs(our_loaded(base, tmp_path / "peft")), expected, **EXACT)
    model = our_model(base, **settings)
    save_adapter(model, tmp_path / "ours")
    assert layout(tmp_path / "ours").keys() == layout(tmp_path / "peft").keys() - duplicates
    loaded = peft_loaded(base, tmp_path / "ours")
    torch.testing.assert_close(outputs(loaded), outputs(model), **EXACT)


@pytest.mark.parametrize(
    "saved",
    [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]],
    ids=["head", "embedding", "both"],
)
def test_peft_unties_saved_modules_and_the_outputs_are_the_same(
    saved: list[str], tmp_path: Path
) -> None:
    base = llama(tie_word_embeddings=True)
    expected = peft_saved(base, tmp_path, modules_to_save=saved)
    with pytest.warns(UserWarning, match=r"no common values for model\.embed_tokens, lm_head"):
        model = our_loaded(base, tmp_path)
    torch.testing.assert_close(outputs(model), expected, **EXACT)
    assert model.lm_head.modules_to_save["default"].weight.requires_grad
    save_adapter(model, tmp_path / "again")
    with pytest.warns(UserWarning, match="no common values"):
        again = our_loaded(base, tmp_path / "again")
    assert torch.equal(outputs(again), outputs(model))


def test_tied_modules_saved_here_stay_tied_here_and_agree_with_peft(tmp_path: Path) -> None:
    base = llama(tie_word_embeddings=True)
    model = our_model(base, modules_to_save=["lm_head"])
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["lm_head", "model.embed_tokens"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = our_loaded(base, tmp_path)
    copies = [
        module.modules_to_save["default"] for module in (again.lm_head, again.model.embed_tokens)
    ]
    assert copies[0].weight is copies[1].weight
    assert torch.equal(outputs(again), outputs(model))
    torch.testing.assert_close(outputs(peft_loaded(base, tmp_path)), outputs(model), **EXACT)


def test_saved_modules_that_the_model_lacks_are_passed_over(tmp_path: Path) -> None:
    expected = peft_saved(llama(), tmp_path, modules_to_save=["lm_head", "classifier"])
    torch.testing.assert_close(outputs(our_loaded(llama(), tmp_path)), expected, **EXACT)


def test_files_without_metadata_are_taken(tmp_path: Path) -> None:
    expected = peft_saved(llama(), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file(load_file(path), path)
    torch.testing.assert_close(outputs(our_loaded(llama(), tmp_path)), expected, **EXACT)


def test_a_saved_module_whose_name_ends_another_is_refused(tmp_path: Path) -> None:
    base = llama(tie_word_embeddings=True)
    base.add_module("old_model", nn.ModuleDict({"model": nn.ModuleDict()}))
    base.old_model["model"]["embed_tokens"] = nn.Embedding(4, 4)
    model = our_model(base, modules_to_save=["lm_head"])
    with pytest.raises(
        ValueError, match=r"got model\.embed_tokens and old_model\.model\.embed_tok"
    ):
        save_adapter(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def _masked_language_model() -> BertForMaskedLM:
    """A model that has the bias of its head under two names."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=64,
    )
    return BertForMaskedLM(config).eval()


TIED_BIAS: dict[str, Any] = {"target_modules": ["query"], "bias": "all"}


def test_a_trained_bias_with_two_names_is_loaded(tmp_path: Path) -> None:
    expected = peft_saved(_masked_language_model(), tmp_path, **TIED_BIAS)
    names = ("bias", "decoder.bias")
    assert {f"base_model.model.cls.predictions.{name}" for name in names} <= layout(tmp_path).keys()
    model = load_adapter(_masked_language_model(), tmp_path).eval()
    torch.testing.assert_close(outputs(model), expected, **EXACT)


def test_two_values_for_a_bias_with_two_names_are_refused(tmp_path: Path) -> None:
    peft_saved(_masked_language_model(), tmp_path, **TIED_BIAS)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.cls.predictions.decoder.bias"] += 1
    save_file(tensors, path)
    model = _masked_language_model()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"decoder\.bias and .* are one tensor of the model"):
        load_adapter(model, tmp_path)
    assert_unchanged(model, before)
