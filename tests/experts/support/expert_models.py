"""Tiny mixture-of-experts models with random weights, and what their experts compute by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import gralora
from gralora import reference
from gralora.nn import GraLoRAExperts

BOTH = ("experts.gate_up_proj", "experts.down_proj")
VOCABULARY = 64
_COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
}


def mixtral() -> nn.Module:
    """Shaped like Mixtral: few wide experts."""
    config = MixtralConfig(**_COMMON, intermediate_size=48, num_local_experts=4)
    return MixtralForCausalLM(config).eval()


def qwen_moe() -> nn.Module:
    """Shaped like Qwen3-MoE: more and narrower experts."""
    config = Qwen3MoeConfig(
        **_COMMON, head_dim=16, intermediate_size=64, moe_intermediate_size=24, num_experts=8
    )
    return Qwen3MoeForCausalLM(config).eval()


FAMILIES: dict[str, Callable[[], nn.Module]] = {"mixtral": mixtral, "qwen-moe": qwen_moe}


def experts_of(model: nn.Module, layer: int = 0) -> nn.Module:
    """The experts module of a decoder layer."""
    return model.get_submodule(f"model.layers.{layer}.mlp.experts")


def tokens() -> Tensor:
    """A batch of token numbers."""
    return torch.randint(0, VOCABULARY, (2, 9))


def fill(model: nn.Module, scale: float = 0.2) -> None:
    """Give everything that trains random values, since a fresh adapter does nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, scale)


def injected(family: str, **settings: object) -> nn.Module:
    """A model whose experts, and they alone, have one filled adapter."""
    values = {"r": 8, "k": 2, "target_modules": (), "target_parameters": BOTH} | settings
    model = gralora.inject(FAMILIES[family](), gralora.GraLoRAConfig(**values))
    fill(model)
    return model


def wrapped(family: str, **adapter: object) -> GraLoRAExperts:
    """The experts of one layer alone, with a filled adapter for both parameters."""
    module = GraLoRAExperts(experts_of(FAMILIES[family]()))
    for weights in module.weights.values():
        weights.add_adapter("default", **adapter)
        weights.set_adapter("default")
    fill(module)
    return module


def routed(experts: int, chosen: int = 2, rows: int = 11) -> tuple[Tensor, Tensor]:
    """Choices of a router that leaves the last expert out, and their weights."""
    index = torch.stack([torch.randperm(experts - 1)[:chosen] for _ in range(rows)])
    return index, torch.rand(rows, chosen)


def by_hand(
    module: GraLoRAExperts, x: Tensor, index: Tensor, weights: Tensor, values: Mapping[str, Tensor]
) -> Tensor:
    """Outputs of gated experts, one token and expert after the other.

    Args:
        module: says what the adapters are.
        x: ``[T, hidden]``.
        index: ``[T, top_k]``.
        weights: ``[T, top_k]``.
        values: the module's state dict, in the dtype to compute in.

    """

    def project(name: str, expert: int, row: Tensor) -> Tensor:
        adapters = module.weights[name]
        spec = adapters.adapters["default"]
        hybrid = {
            key: values[f"{name}.{key}.default"][expert]
            for key in ("lora_A", "lora_B")
            if spec.hybrid_r
        }
        return reference.linear(
            row,
            values[f"base_layer.{name}"][expert],
            None,
            values[f"{name}.gralora_A.default"][expert],
            values[f"{name}.gralora_B.default"][expert],
            scaling=spec.scaling,
            **hybrid,
        )

    outputs = []
    for row, chosen, shares in zip(x, index.tolist(), weights, strict=True):
        total = torch.zeros_like(row)
        for expert, share in zip(chosen, shares, strict=True):
            gate, up = project("gate_up_proj", expert, row).chunk(2)
            total = total + share * project("down_proj", expert, nn.functional.silu(gate) * up)
        outputs.append(total)
    return torch.stack(outputs)
