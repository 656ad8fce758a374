"""One process of data-parallel training of an injected model."""

from __future__ import annotations

import torch
from injected_group import injected, token_batch, train
from torch.nn.parallel import DistributedDataParallel
from training_group import arguments, process_group

from gralora.injection.record import adapter_records


def main() -> None:
    """Trains on this rank's rows, with each kind of gradient checkpointing and with none."""
    options = arguments()
    rows = token_batch()[options.rank :: options.world_size]
    saved = {}
    with process_group(options):
        for kind, reentrant in (("none", None), ("reentrant", True), ("not-reentrant", False)):
            network = DistributedDataParallel(injected(reentrant=reentrant))
            assert adapter_records(network).keys() == {"default"}
            train(network, rows)
            saved[kind] = network.module.state_dict()
        torch.save(saved, options.output)


main()
