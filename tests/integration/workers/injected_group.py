"""The injected model that every process trains, alone or in a group."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from training_group import language_model

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject


def injected(*, reentrant: bool | None = None) -> nn.Module:
    """Tied language model with adapters, trained biases and a saved head; the same in each process.

    Args:
        reentrant: kind of gradient checkpointing; None switches it off.

    """
    model = language_model(tie_word_embeddings=True, attention_bias=True)
    config = GraLoRAConfig(r=8, hybrid_r=2, bias="gralora_only", modules_to_save=["lm_head"])
    inject(model, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_B." in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    if reentrant is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


def token_batch() -> Tensor:
    """The whole batch of token ids [4, 9]."""
    return torch.randint(1, 64, (4, 9), generator=torch.Generator().manual_seed(2))


def train(network: nn.Module, ids: Tensor, steps: int = 2) -> None:
    """Steps of SGD on the mean loss over all tokens of `ids`."""
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        network(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
