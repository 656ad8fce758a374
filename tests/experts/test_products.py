"""The grouped product under the adapters, against one product for each group."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gralora.nn.experts.products import grouped_product

SIZES = {"none empty": [3, 1, 5], "first empty": [0, 4, 2], "last empty": [2, 4, 0], "one": [7]}


def one_by_one(x: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
    parts = x.split(sizes)
    return torch.cat([part @ matrix for part, matrix in zip(parts, weight, strict=True)])


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("K", "R"), [(16, 8), (5, 3), (24, 1), (1, 16)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_values_and_gradients(
    sizes: list[int], K: int, R: int, dtype: torch.dtype, device: torch.device
):
    x = torch.randn(sum(sizes), K, dtype=dtype, device=device, requires_grad=True)
    weight = torch.randn(len(sizes), K, R, dtype=dtype, device=device, requires_grad=True)
    ends = torch.tensor(sizes, device=device).cumsum(0).int()
    y, want = grouped_product(x, weight, ends), one_by_one(x, weight, sizes)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    dy = torch.randn_like(want)
    for got, gradient in zip(
        torch.autograd.grad(y, (x, weight), dy),
        torch.autograd.grad(want, (x, weight), dy),
        strict=True,
    ):
        torch.testing.assert_close(got, gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_a_matrix_may_lie_by_rows_or_by_columns(transposed: bool, device: torch.device):
    x = torch.randn(6, 8, device=device)
    weight = torch.randn(2, 8, 16, device=device)
    if transposed:
        weight = weight.transpose(1, 2).contiguous().transpose(1, 2)
    ends = torch.tensor([2, 6], device=device, dtype=torch.int32)
    torch.testing.assert_close(
        grouped_product(x, weight, ends), one_by_one(x, weight, [2, 4]), rtol=1e-5, atol=1e-5
    )


def test_a_gradient_that_is_one_number_for_all(device: torch.device):
    x = torch.randn(4, 8, device=device, requires_grad=True)
    weight = torch.randn(2, 8, 8, device=device)
    ends = torch.tensor([1, 4], device=device, dtype=torch.int32)
    (got,) = torch.autograd.grad(grouped_product(x, weight, ends).sum(), x)
    (want,) = torch.autograd.grad(one_by_one(x, weight, [1, 3]).sum(), x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_frozen_matrix_keeps_no_rows():
    saved: list[Tensor] = []
    x = torch.randn(4, 8, requires_grad=True)
    ends = torch.tensor([1, 4], dtype=torch.int32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        grouped_product(x, torch.randn(2, 8, 8), ends)
    assert not any(tensor.data_ptr() == x.data_ptr() for tensor in saved)
