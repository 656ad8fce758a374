"""One process of fully sharded training: one step, one in mixed precision, and a deferred start."""

from __future__ import annotations

from argparse import Namespace

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from training_group import arguments, batch, loss_of, model, process_group, share

from gralora.nn import GraLoRALinear


def shard(network: nn.Module, world_size: int, policy: MixedPrecisionPolicy) -> None:
    """Shards each adapted layer by itself, then what is left."""
    mesh = init_device_mesh("cpu", (world_size,))
    for layer in network.modules():
        if isinstance(layer, GraLoRALinear):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor behind a shard."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().clone()


def parameters_of(network: nn.Module) -> dict[str, Tensor]:
    """All parameters, gathered."""
    return {name: gathered(parameter) for name, parameter in network.named_parameters()}


def train(network: nn.Module, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """One step; gradients under ``grad.``, the new parameters under ``new.``."""
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=0.1)
    loss_of(network, x, target).backward()
    saved = {
        f"grad.{name}": gathered(parameter.grad)
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    optimizer.step()
    return saved | {f"new.{name}": value for name, value in parameters_of(network).items()}


def trained(options: Namespace, policy: MixedPrecisionPolicy) -> dict[str, Tensor]:
    """One SGD step on this rank's part of the batch: gradients and parameters, gathered."""
    network = model()
    shard(network, options.world_size, policy)
    return train(network, *share(options))


def initialised(options: Namespace) -> dict[str, Tensor]:
    """A model built without memory, sharded, then allocated and initialised shard by shard."""
    with torch.device("meta"):
        network = model()
    shard(network, options.world_size, MixedPrecisionPolicy())
    network.to_empty(device="cpu")
    torch.manual_seed(2)
    for layer in network.modules():
        if isinstance(layer, GraLoRALinear):
            layer.reset_parameters()
    return parameters_of(network) | {"output": network(batch()[0]).detach()}


def main() -> None:
    """Saves what each task gives, under its name."""
    options = arguments()
    with process_group(options):
        saved = {
            "train": trained(options, MixedPrecisionPolicy()),
            "mixed": trained(options, MixedPrecisionPolicy(param_dtype=torch.bfloat16)),
            "meta": initialised(options),
        }
        torch.save(saved, options.output)


main()
