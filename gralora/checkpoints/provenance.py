"""What a merged model was made with: noted beside it, and compared when a merge goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import torch

from gralora._extension import build_info
from gralora.adapters.stored import StoredAdapter, StoredExperts, StoredLayer
from gralora.storage.tensor_file import bytes_of


def settings_of(
    device: torch.device, adapters: Sequence[tuple[StoredAdapter, float]]
) -> dict[str, Any]:
    """What every shard depends on beside its source and its plan."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "format": 1,
        "gralora": build_info.VERSION,
        "torch": torch.__version__,
        "device": kind,
        "adapters": [
            {
                "name": adapter.directory.resolve().name,
                "weight": weight,
                "sha256": _digest(adapter),
            }
            for adapter, weight in adapters
        ],
    }


def _digest(adapter: StoredAdapter) -> str:
    """Of everything in an adapter that a merge uses."""
    total = hashlib.sha256()

    def add(name: str, tensor: torch.Tensor | None) -> None:
        if tensor is not None:
            total.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
            total.update(bytes_of(tensor))

    layers: dict[str, StoredLayer | StoredExperts] = {**adapter.layers, **adapter.experts}
    for module, layer in sorted(layers.items(), key=lambda entry: entry[0]):
        total.update(repr((module, astuple(layer.spec))).encode())
        for factor in layer.factors:
            add(module, factor)
    for group in (adapter.biases, adapter.saved):
        for name, tensor in sorted(group.items()):
            add(name, tensor)
    return total.hexdigest()
