"""Finds layers whose weights overlap in memory, since merging into one would change the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from weakref import WeakSet

from torch import Tensor

if TYPE_CHECKING:
    from gralora.nn.linear import GraLoRALinear

_layers: WeakSet[GraLoRALinear] = WeakSet()


def register(layer: GraLoRALinear) -> None:
    """Remember a layer for as long as it lives."""
    _layers.add(layer)


def _memory_range(tensor: Tensor) -> tuple[int, int]:
    """First and one-past-last byte that a tensor can touch."""
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def layers_sharing_weight(layer: GraLoRALinear) -> Iterator[GraLoRALinear]:
    """Yield every other live layer whose weight overlaps this layer's."""
    start, end = _memory_range(layer.weight)
    for other in list(_layers):
        if other is layer or other.weight.device != layer.weight.device:
            continue
        other_start, other_end = _memory_range(other.weight)
        if start < other_end and other_start < end:
            yield other
