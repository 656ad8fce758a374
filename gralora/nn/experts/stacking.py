"""The adapters of all experts as one adapter of the matrix that has the experts' weights in a row.

Experts below each other are further output blocks of a grid: ``[E, M, N]`` seen as ``[E*M, N]`` has
the grid ``(E*k_out, k_in)``. So the operators for one matrix serve all experts in one call.
"""

from __future__ import annotations

from torch import Tensor
from torch import cat as concatenate


def as_one_grid(
    A: Tensor, B: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, *, transposed: bool
) -> tuple[Tensor, Tensor]:
    """Factors of one adapter whose ΔW is that of every expert, one below the other.

    Args:
        A: ``[E, k_in, n, k_out*s]``.
        B: ``[E, k_out, k_in*s, m]``.
        lora_A: ``[E, r0, N]`` of hybrids, or None.
        lora_B: ``[E, M, r0]`` of hybrids, or None.
        transposed: of each expert ΔWᵀ ``[N, M]`` instead of ΔW ``[M, N]``.

    Returns:
        ``(A [k_in, n, E*k_out*s'], B [E*k_out, k_in*s', m])`` with ``s' = s + r0``, or with the
        roles of in and out exchanged where `transposed`.

    """
    if lora_A is not None and lora_B is not None:
        A, B = _with_plain_part(A, B, lora_A, lora_B)
    if transposed:
        A, B = B.transpose(-1, -2), A.transpose(-1, -2)
    return A.permute(1, 2, 0, 3).flatten(2), B.flatten(0, 1)


def _with_plain_part(A: Tensor, B: Tensor, lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
    """Factors that have the plain part in every block, as r0 further ranks of it."""
    experts, k_in, n, _ = A.shape
    _, k_out, rank, m = B.shape
    s, r0 = rank // k_in, lora_A.shape[1]
    of_A = lora_A.transpose(1, 2).reshape(experts, k_in, n, 1, r0)
    of_B = lora_B.reshape(experts, k_out, m, r0).transpose(2, 3).unsqueeze(2)
    blocks_A = A.reshape(experts, k_in, n, k_out, s)
    blocks_B = B.reshape(experts, k_out, k_in, s, m)
    return (
        concatenate((blocks_A, of_A.expand(-1, -1, -1, k_out, -1)), 4).flatten(3),
        concatenate((blocks_B, of_B.expand(-1, -1, k_in, -1, -1)), 3).flatten(2, 3),
    )
