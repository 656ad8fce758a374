"""PEFT models of every kind that is accelerated, the same numbers at every call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from peft import GraloraConfig, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gralora.integrations.peft import accelerate

VOCABULARY = 48
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def llama() -> nn.Module:
    """A decoder on nn.Linear, evaluating."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ends)).eval()


def gpt2() -> nn.Module:
    """A decoder on Conv1D, without dropout of its own."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 32}
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **drops, bos_token_id=1, eos_token_id=2)).eval()


BASES: dict[str, Callable[[], nn.Module]] = {"llama": llama, "gpt2": gpt2}


def lora(**options: Any) -> LoraConfig:
    """LoRA whose update is not zero."""
    return LoraConfig(**{"r": 4, "lora_alpha": 6, "init_lora_weights": False} | options)


def gralora(**options: Any) -> GraloraConfig:
    """Hybrid GraLoRA whose update is not zero."""
    settings = {"r": 4, "gralora_k": 2, "hybrid_r": 2, "alpha": 9, "init_weights": False}
    return GraloraConfig(**settings | options)


CONFIGS: dict[str, Callable[..., Any]] = {"lora": lora, "gralora": gralora}


def decoder(base: str, config: Callable[..., Any], **options: Any) -> PeftModel:
    """A language model with PEFT's adapters, not accelerated."""
    options.setdefault("target_modules", TARGETS[base])
    model = BASES[base]()
    torch.manual_seed(1)
    return get_peft_model(model, config(**options))


def network(
    config: Callable[..., Any],
    base: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> PeftModel:
    """A network whose module "layer" is adapted: 12 inputs and 8 outputs where base is None."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("layer", nn.Linear(12, 8) if base is None else base)
    torch.manual_seed(1)
    return get_peft_model(model.to(dtype), config(target_modules=["layer"], **options))


def layer_of(model: PeftModel) -> Any:
    """The adapted module of :func:`network`."""
    return model.base_model.model.layer


def accelerated_copy(model: PeftModel) -> PeftModel:
    """A model of its own with the same numbers, accelerated."""
    return accelerate(copy.deepcopy(model))


def tokens(rows: int = 3, length: int = 5) -> Tensor:
    """Token ids ``[rows, length]`` beyond the special ones."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, the same for the same shape."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradient of each parameter that has one."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: nn.Module, theirs: nn.Module, **tolerance: float) -> None:
    """The same parameters have gradients, and the same ones."""
    expected = gradients(theirs)
    found = gradients(ours)
    assert expected
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, msg=lambda text, n=name: f"{n}: {text}", **tolerance
        )
