"""Adapters of fused experts as adapters of layers, each expert's alone, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import torch
from torch import Tensor

from gralora.adapters.stored import StoredAdapter, StoredExperts, StoredLayer


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


def layers_of(stored: StoredAdapter) -> dict[str, list[StoredLayer]]:
    """A layer alone, or the adapters of all experts of a parameter, by the name of either."""
    return {name: [layer] for name, layer in stored.layers.items()} | {
        name: experts.layers for name, experts in stored.experts.items()
    }


def as_experts(layers: Sequence[StoredLayer]) -> StoredExperts:
    """The adapters of all experts of a parameter, in the widest dtype of each factor.

    Args:
        layers: of one spec and shape, at least one, in the order of the experts.

    """

    def stack(factors: Sequence[Tensor | None]) -> Tensor | None:
        present = [factor for factor in factors if factor is not None]
        if not present:
            return None
        dtype = reduce(torch.promote_types, [factor.dtype for factor in present])
        return torch.stack([factor.to(dtype) for factor in present])

    A, B, lora_A, lora_B = (
        stack(each) for each in zip(*(layer.factors for layer in layers), strict=True)
    )
    assert A is not None
    assert B is not None
    return StoredExperts(layers[0].spec, A, B, lora_A, lora_B)


def in_order(orders: Iterable[Sequence[str]], *, who: str) -> list[str]:
    """Parameters of several adapters, those of one module in its own order.

    Args:
        orders: the parameters of each adapter, by full names, likewise in the modules' order.
        who: opens errors.

    Raises:
        ValueError: an order that the adapters contradict, or that none of them tells.

    """
    before: dict[str, TopologicalSorter[str]] = {}
    for names in orders:
        of_module: dict[str, list[str]] = {}
        for name in names:
            of_module.setdefault(name.rpartition(".")[0], []).append(name)
        for module, own in of_module.items():
            sorter = before.setdefault(module, TopologicalSorter())
            for name in own:
                sorter.add(name)
            for earlier, later in pairwise(own):
                sorter.add(later, earlier)
    return [name for module, sorter in before.items() for name in _sorted(module, sorter, who)]


def _sorted(module: str, sorter: TopologicalSorter[str], who: str) -> list[str]:
    found: list[str] = []
    try:
        sorter.prepare()
    except CycleError:
        raise ValueError(
            f"{who}: the adapters must name the parameters of {module} in one order, which is the "
            "module's"
        ) from None
    while sorter.is_active():
        ready = sorter.get_ready()
        if len(ready) > 1:
            raise ValueError(
                f"{who}: one adapter must have all the parameters of {module}, since their order "
                f"in the module is not known otherwise, got {', '.join(sorted(ready))} in "
                "different ones (merge_checkpoint merges several adapters)"
            )
        found += ready
        sorter.done(*ready)
    return found


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
