"""Weights that are to be changed, and whatever else lies in the same memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from torch import Tensor, nn

from gralora.nn import ExpertWeights
from gralora.nn.sharing import live_layers, memory_range


class _Extent(NamedTuple):
    """Memory of one tensor; extents sort by device and first byte."""

    device: str
    start: int
    end: int
    name: str
    merged: bool


def check_unshared(
    model: nn.Module,
    merged: Collection[nn.Module],
    who: str,
    which: str = "a weight that is merged",
) -> None:
    """Raise where a weight overlaps with another tensor of the model, or with one outside it.

    Args:
        model: looked through as a whole.
        merged: those layers of it whose weights will change.
        who: opens the error message.
        which: says in it what changes them.

    Raises:
        RuntimeError: two tensors of one memory, of which one would change.

    """
    widest: _Extent | None = None
    for current in sorted((*_inside(model, merged), *_outside(model))):
        reach = widest.end if widest and widest.device == current.device else 0
        if widest and current.start < reach and (widest.merged or current.merged):
            one, other = (widest, current) if widest.merged else (current, widest)
            raise RuntimeError(
                f"{who}: {which} must be its layer's alone, got {one.name} and "
                f"{other.name} in the same memory (give each a tensor of its own)"
            )
        if current.end > reach:
            widest = current


def _inside(model: nn.Module, merged: Collection[nn.Module]) -> Iterator[_Extent]:
    # A fused parameter is not its adapters' own, but that of the module that it was given in.
    fused = {id(layer.weight) for layer in merged if isinstance(layer, ExpertWeights)}
    for prefix, module in model.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and _has_memory(tensor):
                name = f"{prefix}.{key}" if prefix else key
                written = (module in merged and key == "weight") or id(tensor) in fused
                yield _extent(tensor, name, written)


def _outside(model: nn.Module) -> Iterator[_Extent]:
    """Weights of layers that belong to another model."""
    inside = set(model.modules())
    for layer in live_layers():
        weight = layer.weight
        if layer not in inside and isinstance(weight, Tensor) and _has_memory(weight):
            yield _extent(weight, "the weight of an adapted layer outside the model", False)


def _extent(tensor: Tensor, name: str, merged: bool) -> _Extent:
    return _Extent(str(tensor.device), *memory_range(tensor), name, merged)


def _has_memory(tensor: Tensor) -> bool:
    ordinary = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    return ordinary and not tensor.is_meta and tensor.numel() > 0
