"""Odd widths, 16 x 16 blocks, ranks to 1024, no tokens: on every path, in memory full of NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops_cases import (
    Grid,
    assert_close,
    assert_gradients_close,
    expected_add,
    expected_linear,
    make_operands,
    run_add,
    run_linear,
)
from ops_paths import GRIDS, dtypes, every_path, grids, on_path
from ops_poison import on_poisoned_memory

OPERATORS = {"linear": (run_linear, expected_linear), "add": (run_add, expected_add)}
operators = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
Dtypes = tuple[torch.dtype, torch.dtype]


@pytest.mark.parametrize("T", [1, 129, 1000])
@dtypes
@grids
@operators
@every_path
def test_result_and_gradients(
    path: Any, operator: Any, grid: Grid, dtypes: Dtypes, T: int, cuda: torch.device
) -> None:
    run, expect = operator
    dtype, factor_dtype = dtypes
    operands = make_operands(grid, (T,), dtype=dtype, factor_dtype=factor_dtype, device=cuda)
    expected, expected_gradients = expect(operands)
    result, gradients = on_path(path, lambda: on_poisoned_memory(lambda: run(operands)))
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=dtype)


# The rank of one pass is k_in*s, that of the other k_out*s.
RANKS = {
    "r_1": Grid(k_in=1, k_out=1, n=72, m=40, s=1),
    "r_1_and_16": Grid(k_in=1, k_out=16, n=72, m=16, s=1),
    "r_257": Grid(k_in=1, k_out=1, n=136, m=72, s=257),
    "r_1000": Grid(k_in=2, k_out=2, n=64, m=72, s=500),
    "r_1024": Grid(k_in=4, k_out=4, n=48, m=72, s=256),
    "r_1024_and_128": Grid(k_in=16, k_out=2, n=24, m=64, s=64),
    "r_1024_in_one_block": Grid(k_in=1, k_out=1, n=288, m=136, s=1024),
    "plain_1024": Grid(k_in=2, k_out=2, n=64, m=72, s=8, r0=1024),
}
ranks = pytest.mark.parametrize("grid", RANKS.values(), ids=RANKS.keys())


@pytest.mark.parametrize("T", [1, 130, 600])
@pytest.mark.parametrize(
    "factor_dtype", [torch.bfloat16, torch.float32], ids=["bf16_factors", "fp32_factors"]
)
@ranks
@operators
@every_path
def test_ranks_from_1_to_1024(
    path: Any, operator: Any, grid: Grid, factor_dtype: torch.dtype, T: int, cuda: torch.device
) -> None:
    run, expect = operator
    operands = make_operands(
        grid, (T,), dtype=torch.bfloat16, factor_dtype=factor_dtype, device=cuda
    )
    expected, expected_gradients = expect(operands)
    result, gradients = on_path(path, lambda: on_poisoned_memory(lambda: run(operands)))
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=torch.bfloat16)


@dtypes
@operators
@every_path
@pytest.mark.parametrize("grid", ["smollm2_288_48", "hybrid", "plain_pair_alone"])
def test_no_tokens_give_zero_gradients(
    grid: str, path: Any, operator: Any, dtypes: Dtypes, cuda: torch.device
) -> None:
    run, expect = operator
    dtype, factor_dtype = dtypes
    operands = make_operands(GRIDS[grid], (0,), dtype=dtype, factor_dtype=factor_dtype, device=cuda)
    _, expected = expect(operands)
    result, gradients = on_path(path, lambda: on_poisoned_memory(lambda: run(operands)))
    assert result.shape == (0, GRIDS[grid].M)
    for name, gradient in gradients.items():
        assert torch.equal(gradient.double(), expected[name]), name


@pytest.mark.cuda_kernels
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@every_path
def test_a_row_of_tokens_of_every_length_of_a_tile(
    path: Any, bias: bool, cuda: torch.device
) -> None:
    grid = GRIDS["smollm2_288_48"]
    for T in [*range(1, 18), 63, 64, 65, 127, 128]:
        operands = make_operands(grid, (T,), dtype=torch.bfloat16, device=cuda, bias=bias)
        expected, expected_gradients = expected_linear(operands)
        result, gradients = on_path(
            path, lambda o=operands: on_poisoned_memory(lambda: run_linear(o))
        )
        assert_close(result, expected, name=f"result of {T} tokens")
        assert_gradients_close(gradients, expected_gradients, dtype=torch.bfloat16)
