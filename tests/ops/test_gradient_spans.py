"""Gradients that an extended product sums span by span of the tokens, on compute capability 9.0."""

from __future__ import annotations

import pytest
import torch
from ops_cases import (
    Grid,
    assert_close,
    assert_gradients_close,
    expected_linear,
    make_operands,
    run_linear,
)
from ops_groups import GroupShape, expected_group, make_group, run_group
from ops_paths import chip, dtypes, runs_sm90
from ops_poison import on_poisoned_memory

import gralora.kernels
from gralora import _C

# Blocks that no tile and no rank that no box divides, one block, and boxes of several 64 ranks.
GRIDS = {
    "odd_blocks": Grid(k_in=3, k_out=2, n=136, m=200, s=8),
    "one_block": Grid(k_in=1, k_out=1, n=520, m=264, s=24),
    "many_ranks": Grid(k_in=4, k_out=2, n=72, m=64, s=32),
}
grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
# Two spans, and four of which the last one is longer.
tokens = pytest.mark.parametrize("T", [4096, 9000])

pytestmark = pytest.mark.cuda_kernels


@pytest.fixture(autouse=True)
def _is_for_such_a_chip(cuda: torch.device) -> None:
    if not runs_sm90():
        pytest.skip("no kernels of compute capability 9.0a run on this GPU")


def _span(T: int, grid: Grid) -> int:
    """Of the backward pass, whose input is dy."""
    product = _C.select_extended_product(
        T=T, depth=grid.M, width=grid.n, rank=grid.k_out * grid.s, blocks=grid.k_in,
        inner=grid.k_out, gradients=[(grid.k_in, grid.n, grid.k_out * grid.s)], **chip(),
    )  # fmt: skip
    return product["gradients"]["span"]


@dtypes
@grids
@tokens
def test_result_and_gradients(
    T: int, grid: Grid, dtypes: tuple[torch.dtype, torch.dtype], cuda: torch.device
) -> None:
    dtype, factor_dtype = dtypes
    operands = make_operands(grid, (T,), dtype=dtype, factor_dtype=factor_dtype, device=cuda)
    expected, expected_gradients = expected_linear(operands)
    with gralora.kernels.forced("sm90"):
        assert _span(T, grid) > 0
        result, gradients = on_poisoned_memory(lambda: run_linear(operands))
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=dtype)


@tokens
def test_layers_over_one_input(T: int, cuda: torch.device) -> None:
    shape = GroupShape(2, 136, 16, ((2, 72), (1, 200)), (True, False))
    group = make_group(shape, (T,), dtype=torch.bfloat16, device=cuda)
    with gralora.kernels.forced("sm90"):
        # dx of both, with latents of three blocks.
        product = _C.select_extended_product(
            T=T, depth=2 * 72 + 200, width=136, rank=48, blocks=2, inner=3, terms=2,
            gradients=[(2, 136, 48)], **chip(),
        )  # fmt: skip
        assert product["gradients"]["span"] > 0
        ys, gradients = on_poisoned_memory(lambda: run_group(group))
    expected, expected_gradients = expected_group(group)
    for actual, exact in zip([*ys, *gradients], [*expected, *expected_gradients], strict=True):
        assert_close(actual, exact, dtype=torch.bfloat16)


@grids
@tokens
def test_the_same_inputs_give_the_same_bits(T: int, grid: Grid, cuda: torch.device) -> None:
    operands = make_operands(grid, (T,), dtype=torch.bfloat16, device=cuda)
    with gralora.kernels.forced("sm90"):
        _, first = run_linear(operands)
        for _ in range(20):
            _, again = on_poisoned_memory(lambda: run_linear(operands))
            for name, gradient in first.items():
                assert torch.equal(gradient, again[name]), name


@tokens
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_what_is_not_finite_reaches_its_columns_alone(
    value: float, T: int, cuda: torch.device
) -> None:
    operands = make_operands(GRIDS["odd_blocks"], (T,), dtype=torch.bfloat16, device=cuda)
    token, column = 5, 140  # in the first span, of the second block
    with gralora.kernels.forced("sm90"):
        _, whole = run_linear(operands)
        operands.x[token, column] = value
        _, spoilt = run_linear(operands)
    rows = torch.arange(operands.A.shape[1], device=cuda) != column - 136
    assert not spoilt["A"][1, ~rows].isfinite().any()
    assert torch.equal(spoilt["A"][1, rows], whole["A"][1, rows])
    assert torch.equal(spoilt["A"][[0, 2]], whole["A"][[0, 2]])


def _allocations(T: int, grid: Grid, device: torch.device) -> int:
    operands = make_operands(grid, (T,), dtype=torch.bfloat16, device=device)
    run_linear(operands)
    before = torch.cuda.memory_stats(device)["allocation.all.allocated"]
    run_linear(operands)
    return torch.cuda.memory_stats(device)["allocation.all.allocated"] - before


@grids
def test_spans_leave_their_sums_in_one_allocation_more(grid: Grid, cuda: torch.device) -> None:
    with gralora.kernels.forced("sm90"):
        assert (_span(4095, grid), _span(4096, grid)) == (0, 2048)
        assert _allocations(4096, grid, cuda) == _allocations(4095, grid, cuda) + 1
