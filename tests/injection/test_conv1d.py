"""Models of Conv1D layers, as GPT-2 is one: injected, merged, and exchanged with PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from injection_models import randomise, tokens, trainable
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

import gralora
from gralora import GraLoRAConfig, inject
from gralora.nn import GraLoRAConv1D, GraLoRALinear

LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def injected(**settings):
    return randomise(inject(gpt2(), GraLoRAConfig(r=8, **settings)))


def names_of(model, kind):
    return {name for name, module in model.named_modules() if isinstance(module, kind)}


@pytest.mark.parametrize("targets", ["all-linear", ["c_attn", "c_proj", "c_fc"]], ids=str)
def test_every_conv1d_is_adapted_and_the_head_is_not(targets):
    model = inject(gpt2(), GraLoRAConfig(r=8, target_modules=targets))
    expected = {f"transformer.h.{i}.{layer}" for i in range(2) for layer in LAYERS}
    assert names_of(model, GraLoRAConv1D) == expected
    assert names_of(model, GraLoRALinear) == set()


def test_checkpoint_of_the_base_still_loads():
    model = inject(gpt2(), GraLoRAConfig(r=8))
    result = model.load_state_dict(gpt2().state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert {key.split(".")[-2] for key in result.missing_keys} == {"gralora_A", "gralora_B"}


def test_fresh_adapter_changes_no_output():
    expected = gpt2()(tokens()).logits
    model = inject(gpt2(), GraLoRAConfig(r=8))
    torch.testing.assert_close(model(tokens()).logits, expected)


def test_merged_model_is_made_of_conv1d_again():
    model = injected(hybrid_r=4)
    expected = model(tokens()).logits
    merged = gralora.merge_and_unload(model)
    assert names_of(merged, GraLoRAConv1D) == set()
    assert len(names_of(merged, Conv1D)) == 8
    assert merged.state_dict().keys() == gpt2().state_dict().keys()
    torch.testing.assert_close(merged(tokens()).logits, expected, rtol=1e-4, atol=1e-4)


def test_trained_biases_are_those_of_the_layers():
    model = inject(gpt2(), GraLoRAConfig(r=8, target_modules=["c_fc"], bias="gralora_only"))
    biases = {name for name in trainable(model) if name.endswith(".bias")}
    assert biases == {f"transformer.h.{i}.mlp.c_fc.bias" for i in range(2)}


@pytest.mark.parametrize("settings", [{}, {"hybrid_r": 4}], ids=["plain", "hybrid"])
def test_peft_loads_what_is_saved(tmp_path, settings, recwarn):
    from peft import PeftModel

    model = injected(**settings).eval()
    gralora.save_adapter(model, tmp_path)
    assert json.loads(Path(tmp_path, "adapter_config.json").read_text())["fan_in_fan_out"] is True
    theirs = PeftModel.from_pretrained(gpt2(), tmp_path).eval()
    assert not [w for w in recwarn if "fan_in_fan_out" in str(w.message)]
    torch.testing.assert_close(theirs(tokens()).logits, model(tokens()).logits)


def test_what_peft_saved_is_loaded_and_saved_the_same(tmp_path):
    from peft import GraloraConfig, get_peft_model

    targets = ["c_attn", "c_proj", "c_fc"]
    config = GraloraConfig(
        r=8, gralora_k=2, hybrid_r=4, alpha=8, target_modules=targets, init_weights=False,
        fan_in_fan_out=True,
    )  # fmt: skip
    theirs = get_peft_model(gpt2(), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    model = gralora.load_adapter(gpt2(), tmp_path / "theirs").eval()
    torch.testing.assert_close(model(tokens()).logits, theirs(tokens()).logits)
    gralora.save_adapter(model, tmp_path / "ours")
    one, two = (
        load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("theirs", "ours")
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
