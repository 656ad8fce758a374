"""Data-parallel training of an injected model."""

from __future__ import annotations

from argparse import Namespace

from injected_group import injected, token_batch, train
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gralora.injection.record import adapter_records


def data_parallel(options: Namespace) -> dict[str, dict[str, Tensor]]:
    """Trains on this rank's rows, with each kind of gradient checkpointing and with none."""
    rows = token_batch()[options.rank :: options.world_size]
    saved = {}
    for kind, reentrant in (("none", None), ("reentrant", True), ("not-reentrant", False)):
        network = DistributedDataParallel(injected(reentrant=reentrant))
        assert adapter_records(network).keys() == {"default"}
        train(network, rows)
        saved[kind] = network.module.state_dict()
    return saved
