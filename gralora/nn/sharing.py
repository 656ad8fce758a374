"""Finds layers whose weights overlap in memory, since merging into one would change the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast
from weakref import WeakSet

from torch import Tensor, nn

_layers: WeakSet[nn.Module] = WeakSet()


def register(layer: nn.Module) -> None:
    """Remember a layer for as long as it lives."""
    _layers.add(layer)


def live_layers() -> list[nn.Module]:
    """All layers that were registered and still live."""
    return list(_layers)


def memory_range(tensor: Tensor) -> tuple[int, int]:
    """First and one-past-last byte that a tensor can touch."""
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def layers_sharing_weight(layer: nn.Module) -> Iterator[nn.Module]:
    """Yield every other live layer whose weight overlaps this layer's."""
    return layers_sharing(cast(Tensor, layer.weight), layer)


def layers_sharing(weight: Tensor, owner: nn.Module | None) -> Iterator[nn.Module]:
    """Yield every live layer but `owner` whose weight overlaps a tensor."""
    start, end = memory_range(weight)
    for other in live_layers():
        other_weight = cast(Tensor, other.weight)
        if other is owner or other_weight.device != weight.device:
            continue
        other_start, other_end = memory_range(other_weight)
        if start < other_end and other_start < end:
            yield other
