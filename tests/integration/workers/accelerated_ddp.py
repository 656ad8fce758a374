"""Data-parallel training of accelerated PEFT models."""

from __future__ import annotations

from argparse import Namespace

from accelerated_group import CHECKPOINTING, CONFIGS, adapters, peft_model
from injected_group import token_batch, train
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gralora.integrations.peft import accelerate, report


def data_parallel(options: Namespace) -> dict[tuple[str, str], dict[str, Tensor]]:
    """Trains on this rank's rows: LoRA and GraLoRA with each kind of checkpointing."""
    rows = token_batch()[options.rank :: options.world_size]
    saved = {}
    for kind in CONFIGS:
        for checkpointing, reentrant in CHECKPOINTING.items():
            model = accelerate(peft_model(kind, reentrant))
            network = DistributedDataParallel(model)
            assert report(network).counts() == {"fused": 6}
            train(network, rows)
            saved[kind, checkpointing] = adapters(model)
    return saved
