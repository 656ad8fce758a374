"""Weighted sums of layers as one low-rank product, window by window."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gralora.adapters.room import check_room
from gralora.adapters.stored import StoredLayer
from gralora.adapters.windows import blocks, rank_of_window, window

# A layer and the factor of its ΔW in a sum.
Part = tuple[float, StoredLayer]

# Below this share of its parts' norms a sum is what their cancellation leaves of rounding.
_CANCELLED = 1e-12
# Of each number at a time: as it is stored, in float64, scaled, beside the others, decomposed.
_BYTES = 40


def sum_window(parts: Sequence[Part], rows: range, columns: range) -> tuple[Tensor, Tensor]:
    """Factors of ``(Σ weight * ΔW)[rows, columns]``, scales included.

    Returns:
        ``(left [len(rows), rank], right [rank, len(columns)])`` in float64; the rank is the sum of
        the ranks of :func:`gralora.adapters.windows.window`.

    Raises:
        MemoryError: too little memory is free for them and their decompositions.

    """
    lefts, rights = [], []
    ranks = sum(rank_of_window(layer, rows, columns) for _, layer in parts)
    needed = _BYTES * ranks * (len(rows) + len(columns))
    check_room(needed, "the factors of a block", who="combine")
    for weight, layer in parts:
        left, right = window(layer, rows, columns)
        lefts.append(weight * layer.spec.scaling * left.double())
        rights.append(right.double())
    return torch.cat(lefts, 1), torch.cat(rights, 0)


def relative_error(*sums: tuple[Sequence[Part], StoredLayer]) -> float:
    """Frobenius norm of ``ΔW(result) - Σ weight * ΔW`` over that of the sum.

    It is 0 or infinite where the sum is zero. Computed block by block from the triangles of thin QR
    decompositions, so that nothing of the size of the weight is formed and a small difference is
    not lost in the squares of large numbers, as it would be by Gram matrices.

    Args:
        sums: parts and result of a layer, or of each expert of a parameter, which count as one
            matrix.

    """
    errors, norms, single = [], [], []
    for parts, result in sums:
        difference = [*parts, (-1.0, result)]
        for rows in blocks(result.out_features, result.spec.k_out):
            for columns in blocks(result.in_features, result.spec.k_in):
                errors.append(_norm(*sum_window(difference, rows, columns)))
                norms.append(_norm(*sum_window(parts, rows, columns)))
                single += [_norm(*sum_window([part], rows, columns)) for part in parts]
    error, norm = math.hypot(*errors), math.hypot(*norms)
    least = _CANCELLED * math.hypot(*single)
    if norm <= least:
        return 0.0 if error <= least else math.inf
    return error / norm


def _norm(left: Tensor, right: Tensor) -> float:
    """Frobenius norm of ``left @ right``."""
    upper = torch.linalg.qr(left, mode="r").R
    lower = torch.linalg.qr(right.T, mode="r").R
    return float((upper @ lower.T).norm())
