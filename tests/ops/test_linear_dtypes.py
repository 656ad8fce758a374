"""`gralora::linear` in every dtype, and with factors of another dtype than x."""

from __future__ import annotations

import pytest
import torch
from ops_cases import (
    FACTORS,
    GRIDS,
    LINEAR,
    TOLERANCE,
    Grid,
    assert_close,
    assert_gradients_close,
    expected_add,
    expected_linear,
    make_operands,
    run_add,
    run_linear,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SHORT = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def dtype_id(dtype: torch.dtype) -> str:
    return SHORT[str(dtype).removeprefix("torch.")]


dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
factor_dtypes = pytest.mark.parametrize("factor_dtype", DTYPES, ids=dtype_id)
some_grids = pytest.mark.parametrize(
    "grid", ["square", "wide", "aligned", "hybrid", "sub_rank_above_block", "plain_pair_alone"]
)


def coarser(*dtypes: torch.dtype) -> torch.dtype:
    return max(dtypes, key=lambda dtype: TOLERANCE[dtype])


@dtypes
@some_grids
def test_result_and_gradients(grid: str, dtype: torch.dtype, device: torch.device) -> None:
    operands = make_operands(GRIDS[grid], (33,), dtype=dtype, device=device)
    expected, expected_gradients = expected_linear(operands)
    result, gradients = run_linear(operands)
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=dtype)


@dtypes
@factor_dtypes
def test_factors_of_another_dtype(
    factor_dtype: torch.dtype, dtype: torch.dtype, device: torch.device
) -> None:
    operands = make_operands(
        GRIDS["hybrid"], (33,), dtype=dtype, factor_dtype=factor_dtype, device=device
    )
    expected, expected_gradients = expected_linear(operands)
    result, gradients = run_linear(operands)
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=coarser(dtype, factor_dtype))


@dtypes
@factor_dtypes
def test_result_has_the_dtype_of_x(
    factor_dtype: torch.dtype, dtype: torch.dtype, device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid"], dtype=dtype, factor_dtype=factor_dtype, device=device)
    assert operands.linear().dtype == dtype


@dtypes
@factor_dtypes
@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_each_gradient_has_the_dtype_of_its_operand(
    tokens: int, factor_dtype: torch.dtype, dtype: torch.dtype, device: torch.device
) -> None:
    operands = make_operands(
        GRIDS["hybrid"], (tokens,), dtype=dtype, factor_dtype=factor_dtype, device=device
    )
    _, gradients = run_linear(operands)
    expected = {name: operand.dtype for name, operand in operands.named(LINEAR).items()}
    assert {name: gradient.dtype for name, gradient in gradients.items()} == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_id)
@pytest.mark.parametrize("name", FACTORS)
def test_gradients_of_fp32_factors_are_not_rounded_to_the_compute_dtype(
    name: str, dtype: torch.dtype, device: torch.device
) -> None:
    operands = make_operands(
        GRIDS["hybrid"], (33,), dtype=dtype, factor_dtype=torch.float32, device=device
    )
    _, gradients = run_linear(operands)
    gradient = gradients[name]
    representable = gradient == gradient.to(dtype).float()
    assert representable.float().mean() < 0.2


@pytest.mark.parametrize("name", FACTORS)
def test_gradients_of_fp32_factors_are_sums_in_fp32(name: str, device: torch.device) -> None:
    # Sums of many equal terms: in bf16 they would stop growing at 256.
    tokens = 3000
    operands = make_operands(
        GRIDS["hybrid"], (tokens,), dtype=torch.bfloat16, factor_dtype=torch.float32, device=device
    )
    operands = operands.map(torch.ones_like, ["x", "dy", *FACTORS]).map(
        torch.zeros_like, ["weight", "bias"]
    )
    _, expected = expected_linear(operands)
    _, gradients = run_linear(operands)
    assert_close(gradients[name], expected[name], dtype=torch.float32)


@dtypes
def test_add_result_and_gradients(dtype: torch.dtype, device: torch.device) -> None:
    operands = make_operands(
        GRIDS["hybrid"], (33,), dtype=dtype, factor_dtype=torch.float32, device=device
    )
    expected, expected_gradients = expected_add(operands)
    result, gradients = run_add(operands)
    assert result.dtype == dtype
    assert_close(result, expected)
    tolerance = coarser(dtype, torch.float32)
    assert_gradients_close(gradients, expected_gradients, dtype=tolerance)


@pytest.mark.parametrize("scaling", [1 / 64, 1.0, 16.0])
def test_fp16_keeps_its_range_under_outliers(scaling: float, device: torch.device) -> None:
    operands = make_operands(
        GRIDS["aligned"], (33,), dtype=torch.float16, scaling=scaling, device=device
    )
    operands.x[:, 3] *= 100
    expected, expected_gradients = expected_linear(operands)
    result, gradients = run_linear(operands)
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_id)
@pytest.mark.parametrize("tokens", [1, 127, 129, 1000])
def test_blocks_of_odd_multiples_of_eight(
    tokens: int, dtype: torch.dtype, device: torch.device
) -> None:
    grid = Grid(k_in=2, k_out=3, n=48, m=16, s=8, r0=8)
    operands = make_operands(
        grid, (tokens,), dtype=dtype, factor_dtype=torch.float32, device=device
    )
    expected, expected_gradients = expected_linear(operands)
    result, gradients = run_linear(operands)
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=dtype)
