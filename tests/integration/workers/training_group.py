"""What every worker does: join the group of processes, and build the same small model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gralora.nn import GraLoRALinear

IN, HIDDEN, OUT, BATCH = 16, 24, 8, 12


def arguments() -> argparse.Namespace:
    """Rank, world size, rendezvous file and output file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rank", type=int)
    parser.add_argument("world_size", type=int)
    parser.add_argument("rendezvous", type=Path)
    parser.add_argument("output", type=Path)
    return parser.parse_args()


@contextmanager
def process_group(options: argparse.Namespace) -> Iterator[None]:
    """A gloo group of all workers, left in order also after an error."""
    dist.init_process_group(
        "gloo",
        init_method=options.rendezvous.as_uri(),
        rank=options.rank,
        world_size=options.world_size,
        timeout=timedelta(seconds=60),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def model(dropout: float = 0.0) -> nn.Sequential:
    """Two adapted layers, one of them hybrid on a rectangular grid, the same in every process."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        GraLoRALinear(IN, HIDDEN, r=8, k=2, dropout=dropout),
        nn.Tanh(),
        GraLoRALinear(HIDDEN, OUT, r=8, k=(2, 4), hybrid_r=2, bias=False, dropout=dropout),
    )
    with torch.no_grad():
        for name, parameter in layers.named_parameters():
            if "_B." in name and not parameter.is_meta:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    return layers


def batch() -> tuple[Tensor, Tensor]:
    """The whole batch: inputs [BATCH, IN] and targets [BATCH, OUT]."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(BATCH, IN, generator=generator),
        torch.randn(BATCH, OUT, generator=generator),
    )


def share(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """This rank's part of the batch."""
    x, target = batch()
    rows = slice(options.rank, None, options.world_size)
    return x[rows], target[rows]


def loss_of(module: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Mean squared error."""
    return (module(x) - target).square().mean()


def language_model(**settings: Any) -> nn.Module:
    """Small causal language model without adapters, in training mode, the same at every call."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**(sizes | heads | settings))).train()
