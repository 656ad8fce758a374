"""Adapters of small models on disk, saved by PEFT and by this package."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import GraloraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import gralora

TOKENS = torch.arange(20).reshape(2, 10)
Q0 = "model.layers.0.self_attn.q_proj"
V1 = "model.layers.1.self_attn.v_proj"


def llama(**settings: Any) -> LlamaForCausalLM:
    """A causal language model with fixed weights, 32 wide and two layers deep."""
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**small, **settings}))
    change_all(model, 1, trainable_only=False, scale=0.1)
    return model.eval()


def change_all(model: nn.Module, seed: int, *, trainable_only: bool, scale: float) -> None:
    """Add fixed noise to parameters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad or not trainable_only:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(scale * noise.to(parameter.dtype))


def logits(model: nn.Module) -> Tensor:
    """For fixed tokens."""
    with torch.no_grad():
        return model(TOKENS).logits


def peft_adapter(directory: Path, base: nn.Module | None = None, **settings: Any) -> PeftModel:
    """PEFT's model with a trained adapter, which is saved in `directory`."""
    base = llama() if base is None else base
    config = GraloraConfig(
        **{"r": 8, "gralora_k": 2, "alpha": 16, "target_modules": ["q_proj", "v_proj"], **settings}
    )
    model = get_peft_model(copy.deepcopy(base), config)
    change_all(model, 2, trainable_only=True, scale=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory)
    return model.eval()


def our_adapter(directory: Path, base: nn.Module | None = None, **settings: Any) -> nn.Module:
    """Our model with a trained adapter, which is saved in `directory`."""
    config = gralora.GraLoRAConfig(
        **{"r": 8, "k": 2, "alpha": 16, "target_modules": ["q_proj", "v_proj"], **settings}
    )
    model = gralora.inject(llama() if base is None else copy.deepcopy(base), config)
    change_all(model, 2, trainable_only=True, scale=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gralora.save_adapter(model, directory)
    return model.eval()


def edit_config(directory: Path, **changes: Any) -> None:
    """Change fields of a saved config; None as in JSON."""
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
