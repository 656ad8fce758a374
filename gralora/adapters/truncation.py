"""A weighted sum of layers in a grid and rank of its own: the best one, block by block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gralora.adapters.stored import StoredLayer
from gralora.adapters.sums import Part, sum_window
from gralora.adapters.windows import blocks
from gralora.nn.spec import make_spec

Grid = tuple[int, int]


def truncate(
    name: str, parts: Sequence[Part], *, rank: int, grid: Grid | None, dropout: float, who: str
) -> StoredLayer:
    """The layer of a rank and grid that is nearest to the sum in the Frobenius norm.

    Blocks do not overlap, so the nearest layer is that of the nearest blocks: each block's largest
    ``s = rank / k_in`` singular values (Eckart and Young). A block is a product ``left @ right`` of
    known low rank; with ``left = Q T`` and ``rightᵀ = P U`` its decomposition follows from that of
    the small ``T Uᵀ``. Square roots of the singular values go to either side, and the scale is 1.

    Args:
        name: of the layer, for errors.
        parts: at least one, of one shape.
        rank: r of the result, a multiple of its ``k_in``; ranks that a block lacks are zeros.
        grid: ``(k_out, k_in)``; None takes the finest of the parts' per axis.
        dropout: of the result.
        who: opens errors.

    Raises:
        ValueError: a grid that does not divide the layer or the rank.

    """
    first = parts[0][1]
    in_features, out_features = first.in_features, first.out_features
    k_out, k_in = grid or (
        max(layer.spec.k_out for _, layer in parts),
        max(layer.spec.k_in for _, layer in parts),
    )

    spec = make_spec(
        in_features,
        out_features,
        r=rank,
        k=(k_out, k_in),
        alpha=rank,
        hybrid_r=0,
        dropout=dropout,
        use_rslora=False,
        who=f"{who}: {name}",
    )
    s = spec.s
    found = [
        [_best(*sum_window(parts, rows, columns), s) for columns in blocks(in_features, k_in)]
        for rows in blocks(out_features, k_out)
    ]
    dtype = _common_dtype(parts)
    A = torch.zeros(k_in, in_features // k_in, k_out, s, dtype=dtype)
    B = torch.zeros(k_out, k_in, s, out_features // k_out, dtype=dtype)
    for i, row in enumerate(found):
        for j, (left, right) in enumerate(row):
            A[j, :, i, : right.shape[0]] = right.T.to(dtype)
            B[i, j, : left.shape[1]] = left.T.to(dtype)
    return StoredLayer(spec, A.flatten(2), B.flatten(1, 2))


def _best(left: Tensor, right: Tensor, s: int) -> tuple[Tensor, Tensor]:
    """``(left [m, q], right [q, n])`` of the best approximation of a product, ``q <= s``."""
    Q, T = torch.linalg.qr(left)
    P, U = torch.linalg.qr(right.T)
    vectors, values, others = torch.linalg.svd(T @ U.T, full_matrices=False)
    roots = values[:s].sqrt()
    return Q @ (vectors[:, :s] * roots), (P @ (others[:s].T * roots)).T


def _common_dtype(parts: Sequence[Part]) -> torch.dtype:
    dtype = parts[0][1].A.dtype
    for _, layer in parts:
        for factor in layer.factors:
            if factor is not None:
                dtype = torch.promote_types(dtype, factor.dtype)
    return dtype
