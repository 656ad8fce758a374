"""Small models, and views of what injection did to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from gralora.nn import GraLoRALinear

VOCABULARY = 64
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _config(**settings: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        pad_token_id=0,
        **settings,
    )


def llama(**settings: Any) -> nn.Module:
    """Causal language model, the same at every call."""
    torch.manual_seed(0)
    return LlamaForCausalLM(_config(**settings)).train()


def llama_classifier(**settings: Any) -> nn.Module:
    """Sequence classifier with four classes, the same at every call."""
    torch.manual_seed(0)
    return LlamaForSequenceClassification(_config(num_labels=4, **settings)).train()


def tokens(rows: int = 2, columns: int = 7, seed: int = 1) -> Tensor:
    """Token ids, none of them padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (rows, columns), generator=generator)


class Block(nn.Module):
    """Two linear layers in a module of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(16, 8)
        self.up = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(torch.tanh(self.down(x)))


class Stack(nn.Module):
    """Numbered blocks, a norm and a head: a model that is none of transformers'."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.ModuleDict({"blocks": nn.ModuleList(Block() for _ in range(blocks))})
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.body["blocks"]:
            x = block(x)
        return self.head(self.norm(x))


def adapted(model: nn.Module) -> set[str]:
    """Names of the adapted layers."""
    return {name for name, module in model.named_modules() if isinstance(module, GraLoRALinear)}


def trainable(model: nn.Module) -> set[str]:
    """Names of the parameters that require gradients, tied ones under every name."""
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if parameter.requires_grad}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every factor of every adapter normal numbers, so that no update is zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".gralora_" in name or ".lora_" in name:
            with torch.no_grad():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a refused call must leave as it was."""
    named = dict(model.named_parameters(remove_duplicate=False))
    return {
        "modules": {name: id(module) for name, module in model.named_modules()},
        "parameters": {name: (id(p), p._version) for name, p in named.items()},
        "requires_grad": {name: p.requires_grad for name, p in named.items()},
        "hooks": {name: list(m._forward_hooks.values()) for name, m in model.named_modules()},
        "attributes": sorted(model.__dict__),
    }
