"""One rank of a fully sharded model that saves its adapter, and loads another one in place.

Arguments: rank, world size, folder. Rank 0 leaves the adapter in ``folder/adapter``; every rank
writes what it saw to ``folder/rank<N>.pt``.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
from storage_models import llama, our_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from gralora.storage.adapter_files import save_adapter
from gralora.storage.state_dict import adapter_state_dict, load_adapter_state_dict

SETTINGS = {"hybrid_r": 2, "bias": "all", "modules_to_save": ["lm_head"]}


def _failure(model: torch.nn.Module, directory: Path) -> str:
    try:
        save_adapter(model, directory)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def main() -> None:
    rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    try:
        model = our_model(llama(attention_bias=True), **SETTINGS)
        mesh = init_device_mesh("cpu", (world_size,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        layer = model.model.layers[0].self_attn.q_proj
        assert isinstance(layer.gralora_A["default"], DTensor)
        save_adapter(model, folder / "adapter")
        # Every rank may rely on the files once its own call has returned.
        seen = (folder / "adapter" / "adapter_config.json").exists()
        state = adapter_state_dict(model)
        new = {key: torch.full_like(value, 0.5) for key, value in state.items()}
        before = [id(parameter) for parameter in model.parameters()]
        load_adapter_state_dict(model, new)
        kept = before == [id(parameter) for parameter in model.parameters()]
        after = adapter_state_dict(model)
        failure = _failure(model, folder / "adapter" / "adapter_config.json")
        result = {"seen": seen, "state": state, "after": after, "kept": kept, "failure": failure}
        torch.save(result, folder / f"rank{rank}.pt")
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
