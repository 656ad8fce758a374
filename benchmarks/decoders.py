"""Decoders with the exact layer shapes of public models, and random weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Nothing looks up tokens here: the input is embeddings already.
_VOCABULARY = 128


@dataclass(frozen=True)
class Decoder:
    """The shape of a decoder, as its authors' ``config.json`` has it."""

    family: str
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    layers: int
    rope_theta: float

    def config(self, layers: int) -> Any:
        """A configuration of transformers with so many layers."""
        import transformers

        return getattr(transformers, f"{self.family}Config")(
            vocab_size=_VOCABULARY,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            rope_theta=self.rope_theta,
            max_position_embeddings=131072,
            use_cache=False,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",
        )


# Qwen2 has biases in its query, key and value projections.
DECODERS = {
    "llama-3.1-8b": Decoder("Llama", 4096, 14336, 32, 8, 32, 5e5),
    "llama-3.2-3b": Decoder("Llama", 3072, 8192, 24, 8, 28, 5e5),
    "qwen2.5-7b": Decoder("Qwen2", 3584, 18944, 28, 4, 28, 1e6),
    "smollm2-135m": Decoder("Llama", 576, 1536, 9, 3, 30, 1e5),
}

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def build_decoder(name: str, layers: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A frozen stack of decoder layers, embeddings in and hidden states out, in training mode.

    Weights are drawn on the device. There is no language-model head: its cost is the same for
    every variant.
    """
    import transformers

    decoder = DECODERS[name]
    torch.manual_seed(0)
    with device, _default_dtype(dtype):
        model: nn.Module = getattr(transformers, f"{decoder.family}Model")(decoder.config(layers))
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.02)
    return model.requires_grad_(False).train()


def share_weights(model: nn.Module) -> nn.Module:
    """A copy of the modules that holds the very same parameters and buffers."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
