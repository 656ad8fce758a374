"""Fully sharded training of an injected model."""

from __future__ import annotations

from argparse import Namespace

from injected_group import injected, token_batch, train
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def shard(model: nn.Module, world_size: int) -> nn.Module:
    """Shards each decoder layer by itself, then what is left."""
    mesh = init_device_mesh("cpu", (world_size,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor behind a shard."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fully_sharded(options: Namespace) -> dict[str, dict[str, Tensor]]:
    """Trains on this rank's rows, with gradient checkpointing and without: the states."""
    rows = token_batch()[options.rank :: options.world_size]
    saved = {}
    for kind, reentrant in (("none", None), ("not-reentrant", False)):
        network = shard(injected(reentrant=reentrant), options.world_size)
        train(network, rows)
        state = network.state_dict()
        saved[kind] = {name: gathered(value).clone() for name, value in state.items()}
    return saved
