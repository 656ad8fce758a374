"""The same inputs give the same bits, however often."""

from __future__ import annotations

import pytest
import torch
from ops_calls import OPERATORS, call_of
from ops_cases import GRIDS, Grid, make_operands
from torch import Tensor

REPEATS = 5
LARGE = Grid(k_in=4, k_out=2, n=64, m=96, s=8, r0=8)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def _same_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@dtypes
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("tokens", [1, 333])
@pytest.mark.parametrize("grid", [LARGE, GRIDS["hybrid"]], ids=["large", "small"])
def test_every_repeat_gives_the_same_bits(
    grid: Grid, tokens: int, operator: str, dtype: torch.dtype, kernel_device: torch.device
) -> None:
    operands = make_operands(
        grid, (tokens,), dtype=dtype, factor_dtype=torch.float32, device=kernel_device
    )
    # A given state where there is one: linear and add would draw theirs.
    dropout_p = 0.0 if operator in ("linear", "add") else 0.25
    call = call_of(operator, operands, dropout_p=dropout_p)
    first = call.outputs()
    assert all(_same_bits(first, call.outputs()) for _ in range(REPEATS))


@dtypes
def test_every_merge_gives_the_same_bits(dtype: torch.dtype, kernel_device: torch.device) -> None:
    operands = make_operands(LARGE, (1,), dtype=dtype, device=kernel_device)
    merged = []
    for _ in range(REPEATS):
        copy = operands.map(Tensor.clone, ["weight"])
        call_of("merge_", copy)()
        merged.append(copy.weight)
    assert all(torch.equal(weight, merged[0]) for weight in merged)


@pytest.mark.parametrize("operator", ["linear", "add"])
def test_a_seeded_step_gives_the_same_bits(operator: str, device: torch.device) -> None:
    names = ["x", "A", "B", "lora_A", "lora_B"]
    steps = []
    for _ in range(REPEATS):
        torch.manual_seed(1)
        leaves = make_operands(LARGE, (65,), dtype=torch.float32, device=device)
        leaves = leaves.requiring_grad(names)
        result = getattr(leaves, operator)(dropout_p=0.25)
        given = list(leaves.named(names).values())
        steps.append([result, *torch.autograd.grad(result, given, leaves.dy)])
    assert all(_same_bits(step, steps[0]) for step in steps)
