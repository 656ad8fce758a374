"""Adapters of fused experts as adapters of layers: each expert's alone, and halves of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gralora.adapters.stored import StoredExperts, StoredLayer


def name_of_expert(parameter: str, expert: int) -> str:
    """What one expert's part of a parameter is called: ``mlp.experts.3.down_proj``.

    The number stands before the parameter's own name, as in checkpoints that have each expert's
    matrices one by one.
    """
    owner, dot, attribute = parameter.rpartition(".")
    return f"{owner}{dot}{expert}.{attribute}"


def as_layers(experts: Mapping[str, StoredExperts]) -> dict[str, StoredLayer]:
    """Each expert's adapter under its own name, those of one parameter next to each other."""
    return {
        name_of_expert(name, number): layer
        for name, stored in experts.items()
        for number, layer in enumerate(stored.layers)
    }


def halves(layer: StoredLayer) -> tuple[StoredLayer, StoredLayer]:
    """The adapters of the upper and the lower half of a layer's outputs.

    Where the middle lies within a block, both have their half of every block and all its ranks.

    Args:
        layer: with an even number of outputs.

    """
    A, B = layer.A, layer.B
    k_out, rank, m = B.shape
    if k_out % 2:
        A = A.reshape(*A.shape[:2], k_out, -1).repeat_interleave(2, 2).flatten(2)
        B = B.reshape(k_out, rank, 2, m // 2).transpose(1, 2).reshape(2 * k_out, rank, m // 2)
    upper, lower = (
        replace(layer, A=part_A, B=part_B)
        for part_A, part_B in zip(A.chunk(2, 2), B.chunk(2, 0), strict=True)
    )
    if layer.lora_B is not None:
        of_upper, of_lower = layer.lora_B.chunk(2, 0)
        upper, lower = replace(upper, lora_B=of_upper), replace(lower, lora_B=of_lower)
    return upper, lower
