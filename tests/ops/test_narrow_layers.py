"""Narrow layers on compute capability 9.0: each tile of the forward pass makes its own latents."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from ops_cases import (
    Grid,
    Operands,
    assert_close,
    assert_gradients_close,
    expected_linear,
    make_operands,
    run_linear,
)
from ops_groups import GroupShape, expected_group, make_group, run_group
from ops_paths import chip, dtypes, runs_sm90
from ops_poison import on_poisoned_memory
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import gralora.kernels
from gralora import _C

# One block of the input to four; both tiles, and tokens that end within one.
GRIDS = {
    "four_blocks": Grid(k_in=4, k_out=4, n=512, m=256, s=16),
    "three_blocks_to_two": Grid(k_in=3, k_out=2, n=704, m=512, s=16),
    "one_block": Grid(k_in=1, k_out=1, n=2048, m=1024, s=16),
}
grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
tokens = pytest.mark.parametrize("T", [2048, 4090])
WIDE = GRIDS["four_blocks"]

pytestmark = pytest.mark.cuda_kernels


@pytest.fixture(autouse=True)
def _is_for_such_a_chip(cuda: torch.device) -> None:
    """How many tiles fill a chip decides, so the shapes are for one with 132 multiprocessors."""
    if not runs_sm90() or chip()["processors"] != 132:
        pytest.skip("not an H100 or H200 with 132 multiprocessors")


def _makes_latents_in_tiles(T: int, grid: Grid, more: Sequence[tuple[int, int]] = ()) -> bool:
    choice = _C.select_extended_product(
        T=T, depth=grid.N, width=grid.m, rank=grid.k_in * grid.s, blocks=grid.k_out,
        inner=grid.k_in, by_depth=True, more=more, **chip(),
    )  # fmt: skip
    return choice["in_tiles"]


def _forward(operands: Operands, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    y, H, _ = torch.ops.gralora.linear_forward(
        operands.x if x is None else x, operands.weight, operands.bias,
        operands.A, operands.B, None, None, None, scaling=0.5, dropout_p=0.0,
    )  # fmt: skip
    return y, H


@dtypes
@grids
@tokens
def test_result_and_gradients(
    T: int, grid: Grid, dtypes: tuple[torch.dtype, torch.dtype], cuda: torch.device
) -> None:
    dtype, factor_dtype = dtypes
    assert _makes_latents_in_tiles(T, grid)
    operands = make_operands(grid, (T,), dtype=dtype, factor_dtype=factor_dtype, device=cuda)
    expected, expected_gradients = expected_linear(operands)
    result, gradients = on_poisoned_memory(lambda: run_linear(operands))
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=dtype)


@grids
@tokens
def test_the_latents_are_those_of_a_projection(T: int, grid: Grid, cuda: torch.device) -> None:
    operands = make_operands(grid, (T,), dtype=torch.bfloat16, device=cuda, bias=False)
    y, H = on_poisoned_memory(lambda: _forward(operands))
    with gralora.kernels.forced("sm80"):
        other_y, other_H = _forward(operands)
    place = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(H.float(), other_H.float(), rtol=place, atol=1e-3)
    assert_close(y, other_y)


def test_layers_over_one_input(cuda: torch.device) -> None:
    assert _makes_latents_in_tiles(4090, WIDE, more=[(2, 512)])
    shape = GroupShape(4, 512, 16, ((4, 256), (2, 512)), (True, False))
    group = make_group(shape, (4090,), dtype=torch.bfloat16, device=cuda)
    ys, gradients = on_poisoned_memory(lambda: run_group(group))
    expected, expected_gradients = expected_group(group)
    for actual, exact in zip([*ys, *gradients], [*expected, *expected_gradients], strict=True):
        assert_close(actual, exact, dtype=torch.bfloat16)


@tokens
def test_a_forward_pass_is_one_kernel(T: int, cuda: torch.device) -> None:
    operands = make_operands(WIDE, (T,), dtype=torch.bfloat16, device=cuda)
    _forward(operands)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        _forward(operands)
        torch.cuda.synchronize()
    launched = [
        event.name
        for event in profiler.events() or ()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    assert len(launched) == 1, launched
    assert "ExtendedProduct" in launched[0]


@tokens
def test_the_same_inputs_give_the_same_bits(T: int, cuda: torch.device) -> None:
    operands = make_operands(WIDE, (T,), dtype=torch.bfloat16, device=cuda)
    first = _forward(operands)
    for _ in range(20):
        for one, again in zip(first, on_poisoned_memory(lambda: _forward(operands)), strict=True):
            assert torch.equal(one, again)


@tokens
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_what_is_not_finite_stays_in_its_token(value: float, T: int, cuda: torch.device) -> None:
    operands = make_operands(WIDE, (T,), dtype=torch.bfloat16, device=cuda)
    y, H = _forward(operands)
    token, column = T - 5, WIDE.n + 3  # in the second block of the input
    x = operands.x.clone()
    x[token, column] = value
    spoilt_y, spoilt_H = _forward(operands, x)
    others = torch.arange(T, device=cuda) != token
    assert torch.equal(spoilt_y[others], y[others])
    assert torch.equal(spoilt_H[:, others], H[:, others])
    assert not spoilt_y[token].isfinite().any()
    # Of its latents those of that block alone.
    s = WIDE.s
    assert not spoilt_H[:, token, s : 2 * s].isfinite().any()
    assert torch.equal(spoilt_H[:, token, :s], H[:, token, :s])
    assert torch.equal(spoilt_H[:, token, 2 * s :], H[:, token, 2 * s :])
