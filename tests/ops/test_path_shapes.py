"""SmolLM2's odd widths, 16 x 16 blocks and no tokens, on every path, in memory full of NaN."""

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
