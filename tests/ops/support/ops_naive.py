"""The update of one adapter, written as loops over single numbers: slow, and hard to get wrong."""

from __future__ import annotations

import torch
from torch import Tensor


def naive_delta_weight(
    A: Tensor | None,
    B: Tensor | None,
    lora_A: Tensor | None = None,
    lora_B: Tensor | None = None,
    *,
    scaling: float,
) -> Tensor:
    """The dense update [M, N] in fp64, one scalar product of Python floats at a time.

    `A` is [k_in, n, k_out*s], `B` [k_out, k_in*s, m], `lora_A` [r0, N], `lora_B` [M, r0].
    """
    if A is not None and B is not None:
        shape = B.shape[0] * B.shape[2], A.shape[0] * A.shape[1]
    else:
        assert lora_A is not None
        assert lora_B is not None
        shape = lora_B.shape[0], lora_A.shape[1]
    delta = [[0.0] * shape[1] for _ in range(shape[0])]
    if A is not None and B is not None:
        _add_grid(delta, A, B)
    if lora_A is not None and lora_B is not None:
        _add_plain(delta, lora_A, lora_B)
    return torch.tensor(delta, dtype=torch.float64).reshape(shape) * scaling


def _add_grid(delta: list[list[float]], A: Tensor, B: Tensor) -> None:
    k_in, n, _ = A.shape
    k_out, r, m = B.shape
    s = r // k_in
    a, b = A.detach().double().tolist(), B.detach().double().tolist()
    for i in range(k_out):
        for j in range(k_in):
            for o in range(m):
                for c in range(n):
                    for q in range(s):
                        delta[i * m + o][j * n + c] += b[i][j * s + q][o] * a[j][c][i * s + q]


def _add_plain(delta: list[list[float]], lora_A: Tensor, lora_B: Tensor) -> None:
    a, b = lora_A.detach().double().tolist(), lora_B.detach().double().tolist()
    for o in range(len(b)):
        for c in range(len(delta[o])):
            delta[o][c] += sum(b[o][q] * a[q][c] for q in range(len(a)))


def naive_linear(x: Tensor, weight: Tensor, bias: Tensor | None, delta: Tensor) -> Tensor:
    """`y = x (W + delta)^T + b` for `x` [T, N] in fp64, one multiplication at a time."""
    rows = x.detach().double().tolist()
    dense = (weight.detach().double() + delta).tolist()
    offset = [0.0] * len(dense) if bias is None else bias.detach().double().tolist()
    out = [
        [
            offset[o] + sum(value * w for value, w in zip(row, dense[o], strict=True))
            for o in range(len(dense))
        ]
        for row in rows
    ]
    return torch.tensor(out, dtype=torch.float64).reshape(len(rows), len(dense))
