"""What the adapters of all experts add to the outputs of their experts.

Blocks of the grid are groups of their own, so that two grouped products serve all blocks of all
experts: one into the latents, one out of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gralora.nn.experts.products import grouped_product


def grouped_delta(x: Tensor, A: Tensor, B: Tensor, ends: Tensor, *, scaling: float) -> Tensor:
    """``Δ_e(x[t])`` for every row t of expert e.

    Args:
        x: ``[S, N]``, sorted by expert, in the dtype to compute in.
        A: ``[E, k_in, n, k_out*s]``, any floating dtype; rounded to x's, like B.
        B: ``[E, k_out, k_in*s, m]``.
        ends: ``[E]`` int32, where each expert's rows end.
        scaling: factor of the whole.

    Returns:
        ``[S, M]`` in x's dtype.

    """
    rows = x.shape[0]
    k_in, n = A.shape[1:3]
    k_out, rank, m = B.shape[1:]
    s = rank // k_in
    cut = x.reshape(rows, k_in, n).transpose(0, 1).reshape(k_in * rows, n)
    by_block = A.to(x.dtype).transpose(0, 1).flatten(0, 1)
    # [k_in, S, k_out, s] to [k_out, S, k_in, s]: each output block reads all input blocks.
    latents = (
        grouped_product(cut, by_block, _ends_of_blocks(ends, k_in, rows))
        .reshape(k_in, rows, k_out, s)
        .permute(2, 1, 0, 3)
        .reshape(k_out * rows, rank)
    )
    # The factor is small and the rows are many.
    by_block = (B * scaling).to(x.dtype).transpose(0, 1).flatten(0, 1)
    y = grouped_product(latents, by_block, _ends_of_blocks(ends, k_out, rows))
    return y.reshape(k_out, rows, m).transpose(0, 1).reshape(rows, k_out * m)


def _ends_of_blocks(ends: Tensor, blocks: int, rows: int) -> Tensor:
    """Ends of the groups (block, expert), where every block has all the rows."""
    if blocks == 1:
        return ends
    starts = torch.arange(blocks, device=ends.device, dtype=ends.dtype) * rows
    return (starts[:, None] + ends).flatten()
