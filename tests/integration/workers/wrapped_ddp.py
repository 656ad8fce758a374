"""One process of data-parallel training over base layers that run themselves."""

from __future__ import annotations

import os
import sys

import torch
from torch.nn.parallel import DistributedDataParallel
from training_group import arguments, process_group
from wrapped_group import adapters, available, rows, train, wrapped


def main() -> None:
    """Trains on this rank's rows, over every kind of base layer that is installed."""
    options = arguments()
    x, target = (whole[options.rank :: options.world_size] for whole in rows())
    saved = {}
    with process_group(options):
        for kind in available():
            # torchao's weights cannot be broadcast; every process has the same ones.
            network = DistributedDataParallel(
                wrapped(kind), init_sync=not kind.startswith("torchao")
            )
            train(network, x, target)
            saved[kind] = {
                **adapters(network.module),
                "output": network.module(rows()[0]).detach(),
            }
        torch.save(saved, options.output)


main()
# As in ddp.py: the interpreter's end can hang.
sys.stdout.flush()
os._exit(0)
