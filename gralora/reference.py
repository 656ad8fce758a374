"""What the operators compute, in the plainest words: the oracle of tests and benchmarks.

Everything here is einsum and Python integers, shares no code with the operators, runs in any
floating dtype on any device, and is differentiable to any order. It is slow.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _split_ranks(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """A as [k_in, n, k_out, s] and B as [k_out, k_in, s, m]."""
    k_in, n, width = A.shape
    k_out, _, m = B.shape
    s = width // k_out
    return A.reshape(k_in, n, k_out, s), B.reshape(k_out, k_in, s, m)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor | None,
    B: Tensor | None,
    *,
    scaling: float,
    lora_A: Tensor | None = None,
    lora_B: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Adapted linear layer; the arguments are those of :func:`gralora.functional.gralora_linear`.

    Args:
        x: ``[..., N]``.
        weight: ``[M, N]``.
        bias: ``[M]`` or None.
        A: ``[k_in, n, k_out*s]`` or None.
        B: ``[k_out, k_in*s, m]`` or None.
        scaling: factor of the adapter.
        lora_A: ``[r0, N]`` or None.
        lora_B: ``[M, r0]`` or None.
        mask: ``[..., N]`` factors of the adapter's input, as :func:`dropout_mask` gives them.

    Returns:
        ``[..., M]``.

    """
    y = torch.einsum("...c,oc->...o", x, weight)
    if bias is not None:
        y = y + bias
    z = x if mask is None else x * mask.reshape(x.shape)
    if A is not None and B is not None:
        blocks_a, blocks_b = _split_ranks(A, B)
        z_blocks = z.reshape(*z.shape[:-1], A.shape[0], A.shape[1])
        latent = torch.einsum("...jc,jciq->...ijq", z_blocks, blocks_a)
        delta = torch.einsum("...ijq,ijqo->...io", latent, blocks_b)
        y = y + scaling * delta.reshape(y.shape)
    if lora_A is not None and lora_B is not None:
        y = y + scaling * torch.einsum("...c,qc,oq->...o", z, lora_A, lora_B)
    return y


def delta_weight(
    A: Tensor | None,
    B: Tensor | None,
    *,
    scaling: float,
    lora_A: Tensor | None = None,
    lora_B: Tensor | None = None,
) -> Tensor:
    """Weight difference of an adapter.

    Args:
        A: ``[k_in, n, k_out*s]`` or None.
        B: ``[k_out, k_in*s, m]`` or None.
        scaling: factor of the whole adapter.
        lora_A: ``[r0, N]`` or None.
        lora_B: ``[M, r0]`` or None.

    Returns:
        ``[M, N]``.

    Raises:
        ValueError: neither pair of factors is given.

    """
    delta: Tensor | None = None
    if A is not None and B is not None:
        blocks_a, blocks_b = _split_ranks(A, B)
        grid = torch.einsum("ijqo,jciq->iojc", blocks_b, blocks_a)
        delta = grid.reshape(B.shape[0] * B.shape[2], A.shape[0] * A.shape[1])
    if lora_A is not None and lora_B is not None:
        plain = torch.einsum("oq,qc->oc", lora_B, lora_A)
        delta = plain if delta is None else delta + plain
    if delta is None:
        raise ValueError("delta_weight: an adapter needs A and B, lora_A and lora_B, or both pairs")
    return scaling * delta


def _philox(seed: int, offset: int, group: int) -> list[int]:
    """Philox4x32-10 (Salmon et al., SC 2011): eight 16-bit numbers."""
    mask = 0xFFFFFFFF
    key = [seed & mask, seed >> 32 & mask]
    c = [group & mask, group >> 32 & mask, offset & mask, offset >> 32 & mask]
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ key[0], second & mask, first >> 32 ^ c[3] ^ key[1], first & mask]
        key = [key[0] + 0x9E3779B9 & mask, key[1] + 0xBB67AE85 & mask]
    return [word >> shift & 0xFFFF for word in c for shift in (0, 16)]


def dropout_mask(rng_state: Tensor, T: int, N: int, p: float) -> Tensor:
    """Factors by which the dropout generator multiplies an input ``[T, N]``: 0 or the scale.

    Args:
        rng_state: int64 ``[2]``, seed and offset.
        T: tokens.
        N: in-features.
        p: probability of a zero, rounded to 1/65536; only 1 drops everything.

    Returns:
        float64 ``[T, N]`` on the CPU.

    """
    seed, offset = (int(value) for value in rng_state.tolist())
    threshold = 65536 if p >= 1 else min(65535, int(p * 65536 + 0.5))
    scale = 0.0 if threshold == 65536 else 65536 / (65536 - threshold)
    numbers: list[int] = []
    for group in range((T * N + 7) // 8):
        numbers += _philox(seed, offset, group)
    kept = torch.tensor(numbers[: T * N], dtype=torch.int64) >= threshold
    return kept.to(torch.float64).mul(scale).reshape(T, N)
