"""What lies between rows in memory never reaches a result.

On CPUs with matrix units, products of 16-bit numbers read past the end of a row. On others these
tests hold by themselves.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

NAN = float("nan")


def _linear(x: Tensor, rank: int, M: int = 200) -> tuple[Tensor, ...]:
    """y, dx, dA and dB of a layer with a grid of 1, its factors in x's dtype."""
    n = x.shape[-1]
    weight = torch.randn(M, n).to(x.dtype)
    A = (torch.randn(1, n, rank) / n**0.5).to(x.dtype).requires_grad_()
    B = torch.randn(1, rank, M).to(x.dtype).requires_grad_()
    y: Tensor = torch.ops.gralora.linear(
        x, weight, None, A, B, None, None, scaling=0.5, dropout_p=0.0
    )
    return y, *torch.autograd.grad(y, (x, A, B), torch.randn_like(y))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("rank", [1, 3, 5, 7, 20])
def test_padding_of_latents_does_not(rank: int, dtype: torch.dtype) -> None:
    x = torch.randn(64, 48).to(dtype).requires_grad_()
    for value in _linear(x, rank):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("width", "pitch"), [(80, 88), (80, 96), (5, 8)])
def test_what_lies_between_rows_of_x_does_not(width: int, pitch: int, dtype: torch.dtype) -> None:
    wider = torch.full((64, pitch), NAN).to(dtype)
    wider[:, :width] = torch.randn(64, width).to(dtype)
    x = wider[:, :width].requires_grad_()
    for value in _linear(x, rank=8):
        assert torch.isfinite(value).all()
