"""Whether a variant computes the layer at all: a fast wrong answer must not enter a table."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gralora.bench.bases import has_input_gradient
from gralora.bench.case import PLAIN, SCALING, Case, Variant
from gralora.bench.harness import random_tensor

# Enough rows to exercise blocks and tails, few enough for an fp64 product of any layer.
ROWS = 70

# Several times what rounding the operands and H costs; a wrong block or scale is far above it.
TOLERANCE = {"fp64": 1e-12, "fp32": 1e-4, "bf16": 3e-2, "fp16": 5e-3}


def relative_errors(case: Case, variant: Variant, linear: nn.Linear) -> dict[str, float]:
    """Compare y, dx and the factors' gradients with a dense fp64 layer on fresh random rows.

    The base of a quantised layer is what it computes itself, so that its own rounding does not hide
    the adapter's; the adapter is dense and in fp64 there too.

    Args:
        case: the layer; its token count is not used.
        variant: a GraLoRA variant; its first module is run, without dropout.
        linear: the base layer of that module.

    Returns:
        Relative error of each in the Frobenius norm; dx is missing where the base has none.
    """
    device = linear.weight.device
    rows = functools.partial(random_tensor, 1, ROWS, dtype=case.torch_dtype, device=device)
    x = rows(case.in_features).requires_grad_(has_input_gradient(case, linear))
    dy = rows(case.out_features)
    with variant.without_dropout():
        y = variant.modules[0](x)
        assert isinstance(y, Tensor)
        gradients = _gradients(y, (x, *variant.parameters[0]), dy)

    operands = [
        t.detach().double().requires_grad_(t.requires_grad) for t in (x, *variant.parameters[0])
    ]
    expected = _base_output(case, linear, operands[0]) + operands[0] @ _dense(*operands[1:]).t()
    expected_gradients = _gradients(expected, operands, dy.double())
    return {
        name: relative_error(got, want)
        for name, got, want in zip(
            ("y", "dx", "dA", "dB", "dlora_A", "dlora_B")[: len(operands) + 1],
            (y, *gradients),
            (expected, *expected_gradients),
            strict=True,
        )
        if got is not None and want is not None
    }


def _gradients(y: Tensor, operands: Sequence[Tensor], dy: Tensor) -> list[Tensor | None]:
    """Gradients of those operands that require one, None for the others."""
    found = iter(torch.autograd.grad(y, [t for t in operands if t.requires_grad], dy))
    return [next(found) if operand.requires_grad else None for operand in operands]


def _base_output(case: Case, linear: nn.Linear, x: Tensor) -> Tensor:
    """The frozen layer's y in fp64, differentiable in fp64 x."""
    if case.base == PLAIN:
        return x @ linear.weight.detach().double().t()
    y: Tensor = linear(x.to(case.torch_dtype))
    return y.double()


def dense_weight(weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """W + ΔW ``[M, N]`` in fp64, differentiable in fp64 A ``[k, n, r]`` and B ``[k, r, m]``."""
    return weight.detach().double() + _dense(A, B)


def _dense(A: Tensor, B: Tensor, *plain: Tensor) -> Tensor:
    """Scaled, of a grid's factors and of a plain part's ``[r0, N]`` and ``[M, r0]``."""
    grid = A.shape[0]
    delta = torch.einsum(
        "jciq,ijqo->iojc",
        A.view(grid, A.shape[1], grid, -1),
        B.view(grid, grid, -1, B.shape[2]),
    )
    delta = delta.reshape(grid * B.shape[2], grid * A.shape[1])
    if plain:
        delta = delta + plain[1] @ plain[0]
    return SCALING * delta


def relative_error(got: Tensor, want: Tensor) -> float:
    """``|got - want| / |want|`` in the Frobenius norm."""
    return float((got.detach().double() - want.detach()).norm() / want.detach().norm())
