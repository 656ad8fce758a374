"""Any rectangle of a layer's ΔW as one low-rank product, straight from the factors.

A block (i, j) of the grid is a product of rank s. A window that meets several blocks is the product
of matrices that hold those blocks' factors side by side and are zero elsewhere: the whole weight as
one window is the exact LoRA of rank ``k_out*k_in*s + r0``, one block of it is the block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gralora.adapters.stored import StoredLayer


def window(layer: StoredLayer, rows: range, columns: range) -> tuple[Tensor, Tensor]:
    """Factors of ``ΔW[rows, columns] / scaling``, bit for bit those of the layer.

    Args:
        layer: of ``M`` out- and ``N`` in-features.
        rows: of ΔW, within ``range(M)``, without gaps; not empty.
        columns: of ΔW, within ``range(N)``, likewise.

    Returns:
        ``(left [len(rows), rank], right [rank, len(columns)])`` in the factors' dtypes. Latents are
        ordered by output block, input block and rank within the block; those of the plain part
        come last. The rank is s for each block that the window meets, plus r0.

    """
    s, (_, n, _), m = layer.spec.s, layer.A.shape, layer.B.shape[2]
    spans = [(out, inner) for out in _spans(rows, m) for inner in _spans(columns, n)]
    rank = rank_of_window(layer, rows, columns)
    left = layer.B.new_zeros(len(rows), rank)
    right = layer.A.new_zeros(rank, len(columns))
    for position, ((i, across), (j, along)) in enumerate(spans):
        latents = slice(position * s, (position + 1) * s)
        left[_shifted(across, i * m - rows.start), latents] = layer.B[
            i, j * s : (j + 1) * s, across
        ].T
        right[latents, _shifted(along, j * n - columns.start)] = layer.A[
            j, along, i * s : (i + 1) * s
        ].T
    if layer.lora_A is not None and layer.lora_B is not None:
        plain = s * len(spans)
        left[:, plain:] = layer.lora_B[rows.start : rows.stop]
        right[plain:] = layer.lora_A[:, columns.start : columns.stop]
    return left, right


def rank_of_window(layer: StoredLayer, rows: range, columns: range) -> int:
    """The rank that :func:`window` gives."""
    across, along = _spans(rows, layer.B.shape[2]), _spans(columns, layer.A.shape[1])
    return layer.spec.s * len(across) * len(along) + layer.spec.hybrid_r


def blocks(length: int, count: int) -> Iterator[range]:
    """The ranges that `count` equal blocks of an axis cover."""
    width = length // count
    return (range(start, start + width) for start in range(0, length, width))


def scaled(tensor: Tensor, factor: float, *, who: str) -> Tensor:
    """``factor * tensor``, in float32 where a 16-bit dtype does not hold the product exactly.

    Args:
        tensor: a factor of a layer.
        factor: its scale.
        who: opens errors: the function that was called, and the layer.

    Raises:
        ValueError: a number that was finite is not so any more.

    """
    product = tensor.double() * factor
    rounded = product.to(tensor.dtype)
    if tensor.dtype.itemsize < torch.float32.itemsize and not torch.equal(
        rounded.double(), product
    ):
        rounded = product.float()
    if bool(tensor.isfinite().all()) and not bool(rounded.isfinite().all()):
        raise ValueError(
            f"{who}: a scaled factor must stay finite, got a scale of {factor:g} on "
            f"numbers up to {float(tensor.abs().max()):g}"
        )
    return rounded


def _spans(part: range, width: int) -> list[tuple[int, slice]]:
    """Index of each block of `width` that a range meets, and where in the block."""
    return [
        (index, slice(max(part.start - index * width, 0), min(part.stop - index * width, width)))
        for index in range(part.start // width, (part.stop - 1) // width + 1)
    ]


def _shifted(part: slice, offset: int) -> slice:
    return slice(part.start + offset, part.stop + offset)
