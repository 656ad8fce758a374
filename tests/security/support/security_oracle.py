"""What the safetensors package reads, for comparison: no code of the product is used."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from security_files import PREFIX
from torch import Tensor

_FACTORS = {
    ".gralora_A": "A",
    ".gralora_B": "B",
    ".gralora_A_general.weight": "lora_A",
    ".gralora_B_general.weight": "lora_B",
}
Bits = tuple[torch.dtype, tuple[int, ...], bytes]


def bits(tensor: Tensor) -> Bits:
    """Everything that a tensor is, NaN and all."""
    content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return tensor.dtype, tuple(tensor.shape), content


def read(path: Path) -> dict[str, Bits]:
    """The tensors of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {name: bits(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118


def adapter_names(tensors: dict[str, Bits]) -> dict[tuple[str, str], Bits]:
    """An adapter's tensors by module and factor, others by name and "whole"."""
    found = {}
    for key, value in tensors.items():
        assert key.startswith(PREFIX)
        path = key.removeprefix(PREFIX)
        for ending, factor in _FACTORS.items():
            if path.endswith(ending):
                found[path.removesuffix(ending), factor] = value
                break
        else:
            found[path.replace(".base_layer.", ".").replace(".original_module.", "."), "whole"] = (
                value
            )
    return found
