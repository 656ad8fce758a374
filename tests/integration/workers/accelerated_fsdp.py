"""Fully sharded training of accelerated PEFT models."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from accelerated_group import CONFIGS, adapters, peft_model
from injected_group import token_batch, train
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gralora.integrations.peft import accelerate, report


def fully_sharded(options: Namespace) -> dict[str, dict[str, Any]]:
    """Trains on this rank's rows: LoRA and GraLoRA.

    Returns:
        Whole adapters, and the ways that `report` says within a pass and after it.

    """
    rows = token_batch()[options.rank :: options.world_size]
    mesh = init_device_mesh("cpu", (options.world_size,))
    saved = {}
    for kind in CONFIGS:
        model = accelerate(peft_model(kind))
        layers = model.base_model.model.model.layers
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        network = fully_shard(model, mesh=mesh)
        within: list[dict[str, int]] = []
        layers[0].self_attn.register_forward_pre_hook(
            lambda module, args, seen=within: seen.append(report(module).counts())
        )
        train(network, rows)
        saved[kind] = {
            "adapters": {name: p.full_tensor().clone() for name, p in adapters(model).items()},
            "within": within[0],
            "after": report(layers[0].self_attn).counts(),
        }
    return saved
