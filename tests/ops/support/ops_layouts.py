"""The same values in every memory layout a caller may bring.

Each layout takes a tensor and returns one that is equal to it. Storage that no element covers is
NaN, so that a kernel which reads past a row shows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Layout = Callable[[Tensor], Tensor]


def contiguous(values: Tensor) -> Tensor:
    """Row-major and dense."""
    return values.detach().clone(memory_format=torch.contiguous_format)


def transposed(values: Tensor) -> Tensor:
    """The last two axes swapped in memory; a 1-D tensor stays as it is."""
    if values.dim() < 2:
        return contiguous(values)
    return contiguous(values.transpose(-1, -2)).transpose(-1, -2)


def padded(values: Tensor) -> Tensor:
    """Each row three elements longer than what is used of it."""
    store = _poisoned(values, (*values.shape[:-1], values.shape[-1] + 3))
    view = store[..., : values.shape[-1]]
    return view.copy_(values)


def strided(values: Tensor) -> Tensor:
    """Every second element of each row."""
    store = _poisoned(values, (*values.shape[:-1], 2 * values.shape[-1] + 1))
    view = store[..., 1::2]
    return view.copy_(values)


def offset(values: Tensor) -> Tensor:
    """Dense, but starting at an odd storage offset: no address is 16-byte aligned."""
    store = _poisoned(values, (values.numel() + 5,))
    view = store[5:].view(values.shape)
    return view.copy_(values)


def shifted(elements: int) -> Layout:
    """Dense, but starting so many elements into its storage."""

    def layout(values: Tensor) -> Tensor:
        store = _poisoned(values, (values.numel() + elements,))
        view = store[elements:].view(values.shape)
        return view.copy_(values)

    return layout


def groups_apart(values: Tensor) -> Tensor:
    """Each row eight elements longer than what is used of it: aligned where it was."""
    store = _poisoned(values, (*values.shape[:-1], values.shape[-1] + 8))
    view = store[..., : values.shape[-1]]
    return view.copy_(values)


def outer_padded(values: Tensor) -> Tensor:
    """The first axis with gaps between its entries, so that leading axes do not flatten."""
    store = _poisoned(values, (2 * values.shape[0] + 1, *values.shape[1:]))
    view = store[1::2]
    return view.copy_(values)


def reversed_axes(values: Tensor) -> Tensor:
    """All axes in the opposite order in memory."""
    order = tuple(reversed(range(values.dim())))
    return contiguous(values.permute(order)).permute(order)


def _poisoned(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape, math.nan, dtype=like.dtype, device=like.device)


LAYOUTS: dict[str, Layout] = {
    layout.__name__: layout
    for layout in (contiguous, transposed, padded, strided, offset, outer_padded, reversed_axes)
}
