"""Whether a variant computes the layer at all: a fast wrong answer must not enter a table."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from gralora.bench.case import SCALING, Case, Variant
from gralora.bench.harness import random_tensor

# Enough rows to exercise blocks and tails, few enough for an fp64 product of any layer.
_TOKENS = 70

# Several times what rounding the operands and H costs; a wrong block or scale is far above it.
TOLERANCE = {"fp64": 1e-12, "fp32": 1e-4, "bf16": 3e-2, "fp16": 5e-3}


def relative_errors(case: Case, variant: Variant, linear: nn.Linear) -> dict[str, float]:
    """Compare y, dx, dA and dB with a dense fp64 layer on fresh random rows.

    Args:
        case: the layer; its token count is not used.
        variant: a GraLoRA variant; its first module is run.
        linear: the base layer of that module.

    Returns:
        Relative error of each in the Frobenius norm.
    """
    device = linear.weight.device
    rows = functools.partial(random_tensor, 1, _TOKENS, dtype=case.torch_dtype, device=device)
    x = rows(case.in_features).requires_grad_()
    dy = rows(case.out_features)
    y = variant.modules[0](x)
    gradients = torch.autograd.grad(y, (x, *variant.parameters[0]), dy)

    operands = [t.detach().double().requires_grad_() for t in (x, *variant.parameters[0])]
    expected = operands[0] @ dense_weight(linear.weight, *operands[1:]).t()
    expected_gradients = torch.autograd.grad(expected, operands, dy.double())
    return {
        name: relative_error(got, want)
        for name, got, want in zip(
            ("y", "dx", "dA", "dB"),
            (y, *gradients),
            (expected, *expected_gradients),
            strict=True,
        )
    }


def dense_weight(weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """W + ΔW ``[M, N]`` in fp64, differentiable in fp64 A ``[k, n, r]`` and B ``[k, r, m]``."""
    grid = A.shape[0]
    delta = torch.einsum(
        "jciq,ijqo->iojc",
        A.view(grid, A.shape[1], grid, -1),
        B.view(grid, grid, -1, B.shape[2]),
    )
    return weight.detach().double() + SCALING * delta.reshape(weight.shape)


def relative_error(got: Tensor, want: Tensor) -> float:
    """``|got - want| / |want|`` in the Frobenius norm."""
    return float((got.detach().double() - want.detach()).norm() / want.detach().norm())
