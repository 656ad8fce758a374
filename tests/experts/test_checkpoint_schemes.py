"""How checkpoints name experts and lay them out, beyond what the tests' families have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expert_models import fill, injected, mixtral
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GptOssConfig, GptOssForCausalLM

import gralora

pytestmark = pytest.mark.filterwarnings("ignore:save_adapter. PEFT cannot load this adapter")
FILE = "model.safetensors"


def merge(model: nn.Module, base: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The base's tensors with the model's adapter, merged on disk."""
    (folder / "base").mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in base.items()}, folder / "base" / FILE)
    gralora.save_adapter(model, folder / "adapter")
    gralora.merge_checkpoint(folder / "base", folder / "adapter", folder / "merged")
    merged = load_file(folder / "merged" / FILE)
    assert set(merged) == set(base)
    return merged


def test_w1_w3_and_w2_under_the_models_own_path(tmp_path: Path):
    torch.manual_seed(1)
    mixtral().save_pretrained(tmp_path / "base")
    base = load_file(tmp_path / "base" / FILE)
    own = {name.replace(".block_sparse_moe.", ".mlp."): value for name, value in base.items()}
    torch.manual_seed(1)
    model = injected("mixtral")
    merged = merge(model, own, tmp_path)
    wanted = gralora.merge_and_unload(model).state_dict()
    for layer in range(2):
        experts = f"model.layers.{layer}.mlp.experts"
        for expert in range(4):
            w1, w2, w3 = (merged[f"{experts}.{expert}.w{n}.weight"] for n in (1, 2, 3))
            gate_up = wanted[f"{experts}.gate_up_proj"][expert]
            torch.testing.assert_close(torch.cat([w1, w3]), gate_up, rtol=1e-5, atol=1e-6)
            down = wanted[f"{experts}.down_proj"][expert]
            torch.testing.assert_close(w2, down, rtol=1e-5, atol=1e-6)


def test_other_names_are_refused(tmp_path: Path):
    torch.manual_seed(1)
    mixtral().save_pretrained(tmp_path / "base")
    base = load_file(tmp_path / "base" / FILE)
    other = {name.replace(".w2.", ".fc2."): value for name, value in base.items()}
    with pytest.raises(ValueError, match="must fit the base model, got 4 of 4 adapted modules"):
        merge(injected("mixtral"), other, tmp_path)


def test_experts_without_a_gate(tmp_path: Path):
    owner = nn.Module()
    owner.up_proj = nn.Parameter(torch.randn(3, 12, 8))
    owner.down_proj = nn.Parameter(torch.randn(3, 8, 12))
    names = ("up_proj", "down_proj")
    base = {
        f"experts.{expert}.{name}.weight": matrix.clone()
        for name in names
        for expert, matrix in enumerate(getattr(owner, name).detach())
    }
    targets = [f"experts.{name}" for name in names]
    model = gralora.inject(
        nn.ModuleDict({"experts": owner}),
        gralora.GraLoRAConfig(r=4, k=2, target_modules=(), target_parameters=targets),
    )
    fill(model)
    merged = merge(model, base, tmp_path)
    for name in names:
        weights = model["experts"].weights[name]
        for expert, delta in enumerate(weights.delta_weight().detach()):
            key = f"experts.{expert}.{name}.weight"
            torch.testing.assert_close(merged[key], base[key] + delta, rtol=1e-5, atol=1e-6)


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def gpt_oss() -> nn.Module:
    return GptOssForCausalLM(GptOssConfig(**SIZES))


def openai_privacy_filter() -> nn.Module:
    name = "transformers.models.openai_privacy_filter"
    pytest.importorskip(name, reason="transformers is older than this family")
    from transformers import OpenAIPrivacyFilterConfig, OpenAIPrivacyFilterForTokenClassification

    return OpenAIPrivacyFilterForTokenClassification(OpenAIPrivacyFilterConfig(**SIZES))


TRANSPOSED = {make.__name__: make for make in (gpt_oss, openai_privacy_filter)}


@pytest.mark.parametrize("family", TRANSPOSED)
def test_square_experts_of_families_that_have_them_transposed(family: str, tmp_path: Path):
    torch.manual_seed(1)
    model = TRANSPOSED[family]()
    assert model.config.model_type == family
    base = {name: value.clone() for name, value in model.state_dict().items()}
    model.config.save_pretrained(tmp_path / "base")
    config = gralora.GraLoRAConfig(
        r=4, k=2, target_modules=(), target_parameters=["experts.down_proj"]
    )
    gralora.inject(model, config)
    fill(model)
    merged = merge(model, base, tmp_path)
    wanted = gralora.merge_and_unload(model).state_dict()
    (name,) = (name for name in base if name.endswith("experts.down_proj"))
    torch.testing.assert_close(merged[name], wanted[name], rtol=1e-5, atol=1e-6)
    assert (merged[name] - base[name]).abs().max() > 1e-2
