"""One process of data-parallel training of accelerated PEFT models."""

from __future__ import annotations

import os
import sys

import torch
from accelerated_group import CHECKPOINTING, CONFIGS, adapters, peft_model
from injected_group import token_batch, train
from torch.nn.parallel import DistributedDataParallel
from training_group import arguments, process_group

from gralora.integrations.peft import accelerate, report


def main() -> None:
    """Trains on this rank's rows: LoRA and GraLoRA with each kind of checkpointing."""
    options = arguments()
    rows = token_batch()[options.rank :: options.world_size]
    saved = {}
    with process_group(options):
        for kind in CONFIGS:
            for checkpointing, reentrant in CHECKPOINTING.items():
                model = accelerate(peft_model(kind, reentrant))
                network = DistributedDataParallel(model)
                assert report(network).counts() == {"fused": 6}
                train(network, rows)
                saved[kind, checkpointing] = adapters(model)
        torch.save(saved, options.output)


main()
# As in ddp.py: the interpreter's end can hang.
sys.stdout.flush()
os._exit(0)
