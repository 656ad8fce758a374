"""Autocast around an operator changes nothing but what linear and add cast on purpose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


def _factors(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    A = torch.randn(2, 32, 12, dtype=dtype, device=device)
    B = torch.randn(3, 8, 16, dtype=dtype, device=device)
    return A, B


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_merge_has_the_bits_of_one_outside(
    weight_dtype: torch.dtype, kernel_device: torch.device
) -> None:
    A, B = _factors(torch.float32, kernel_device)
    outside = torch.randn(48, 64, device=kernel_device).to(weight_dtype)
    inside = outside.clone()
    torch.ops.gralora.merge_(outside, A, B, None, None, scaling=0.5)
    with torch.autocast(kernel_device.type, torch.bfloat16):
        torch.ops.gralora.merge_(inside, A, B, None, None, scaling=0.5)
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
def test_delta_weight_has_the_bits_of_one_outside(
    trainable: bool, kernel_device: torch.device
) -> None:
    A, B = (f.requires_grad_(trainable) for f in _factors(torch.float32, kernel_device))
    outside = torch.ops.gralora.delta_weight(A, B, None, None, scaling=0.5)
    with torch.autocast(kernel_device.type, torch.bfloat16):
        inside = torch.ops.gralora.delta_weight(A, B, None, None, scaling=0.5)
    assert torch.equal(inside, outside)


def test_backward_inside_autocast_of_a_forward_outside(device: torch.device) -> None:
    A, B = (f.requires_grad_() for f in _factors(torch.float32, device))
    x = torch.randn(5, 64, device=device, requires_grad=True)
    weight = torch.randn(48, 64, device=device)

    def gradients(inside: bool) -> tuple[Tensor, ...]:
        y = torch.ops.gralora.linear(x, weight, None, A, B, None, None, scaling=0.5)
        with torch.autocast(device.type, torch.bfloat16, enabled=inside):
            return torch.autograd.grad(y, [x, A, B], torch.ones_like(y))

    for ours, expected in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(ours, expected)
