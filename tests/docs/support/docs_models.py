"""Models for the readers of pages."""

from __future__ import annotations

from pathlib import Path

import torch


def save_tiny_llama(folder: Path) -> None:
    """Save a Llama with random weights, 64 wide and two layers deep, 96 tokens, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        max_position_embeddings=64,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
