"""`gralora::merge_`: adds an adapter's dense update to a weight, in place and rounded once."""

from __future__ import annotations

import pytest
import torch
from ops_cases import FACTORS, GRIDS, Grid, Operands, make_operands
from ops_layouts import LAYOUTS, Layout, contiguous
from ops_naive import naive_delta_weight
from torch import Tensor

pytestmark = pytest.mark.usefixtures("poisoned_memory")
grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
factor_dtypes = pytest.mark.parametrize("factor_dtype", DTYPES.values(), ids=DTYPES.keys())


def _merge(operands: Operands, sign: float = 1.0) -> Tensor:
    """Merges into the weight of `operands` and returns it."""
    factors = operands.factors()
    torch.ops.gralora.merge_(operands.weight, *factors, scaling=operands.scaling, sign=sign)
    return operands.weight


def _exact(operands: Operands, sign: float = 1.0) -> Tensor:
    """What a merge gives before it is rounded, from the weight as it is now, in fp64."""
    delta = naive_delta_weight(*operands.factors(), scaling=operands.scaling)
    return operands.weight.detach().double() + sign * delta.to(operands.weight.device)


def _assert_rounded_once(merged: Tensor, exact: Tensor, sums: torch.dtype) -> None:
    """`merged` is `exact` rounded to its dtype, up to the accuracy of sums kept in `sums`."""
    rounded = exact.to(merged.dtype)
    infinity = torch.full_like(rounded, torch.inf)
    unit = (torch.nextafter(rounded.abs(), infinity) - rounded.abs()).double()
    # Operands are about 1, and a dozen terms are added.
    accuracy = 16 * torch.finfo(sums).eps
    error = (merged.double() - rounded.double()).abs()
    assert bool((error <= torch.maximum(unit, torch.full_like(unit, accuracy))).all())
    if merged.dtype.itemsize == 2:
        # A second rounding of the update would move about a third of the elements.
        assert (merged != rounded).double().mean() < 0.02


@grids
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["add", "subtract"])
def test_every_grid(grid: Grid, sign: float, kernel_device: torch.device) -> None:
    operands = make_operands(grid, device=kernel_device)
    exact = _exact(operands, sign)
    torch.testing.assert_close(_merge(operands, sign), exact, rtol=1e-12, atol=1e-12)


@dtypes
@factor_dtypes
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["add", "subtract"])
def test_every_pair_of_dtypes_is_rounded_once(
    sign: float, factor_dtype: torch.dtype, dtype: torch.dtype, kernel_device: torch.device
) -> None:
    grid = Grid(k_in=2, k_out=3, n=20, m=11, s=3, r0=4)
    operands = make_operands(grid, dtype=dtype, factor_dtype=factor_dtype, device=kernel_device)
    exact = _exact(operands, sign)
    both_wide = dtype == factor_dtype == torch.float64
    sums = torch.float64 if both_wide else torch.float32
    _assert_rounded_once(_merge(operands, sign), exact, sums)


@pytest.mark.parametrize("grid", ["square", "wide", "hybrid", "lora", "plain_pair_alone"])
def test_fp32_factors_into_a_bf16_weight_are_rounded_once(
    grid: str, kernel_device: torch.device
) -> None:
    operands = make_operands(
        GRIDS[grid], dtype=torch.bfloat16, factor_dtype=torch.float32, device=kernel_device
    )
    exact = _exact(operands)
    _assert_rounded_once(_merge(operands), exact, torch.float32)


def test_an_update_below_half_a_unit_of_the_update_is_not_lost(
    kernel_device: torch.device,
) -> None:
    # 1 + 2^-8 is a tie of bf16's rounding to even; a little more must round up.
    one = torch.ones(1, 1, dtype=torch.bfloat16, device=kernel_device)
    A = torch.ones(1, 1, 1, device=kernel_device)
    B = torch.full((1, 1, 1), 2**-8 * (1 + 2**-12), device=kernel_device)
    torch.ops.gralora.merge_(one, A, B, None, None, scaling=1.0)
    assert one.item() == 1 + 2**-7


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (8, 8), (16, 128), (130, 72), (257, 127), (64, 1000)],
    ids=lambda shape: f"{shape[0]}x{shape[1]}",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_block_sizes_around_those_of_a_kernel(
    dtype: torch.dtype, shape: tuple[int, int], kernel_device: torch.device
) -> None:
    m, n = shape
    grid = Grid(k_in=3, k_out=2, n=n, m=m, s=5)
    operands = make_operands(grid, (1,), dtype=dtype, device=kernel_device)
    # The loops of the naive reference would take minutes at these sizes.
    wide = operands.map(Tensor.double, FACTORS)
    delta = torch.zeros(grid.M, grid.N, dtype=torch.float64, device=kernel_device)
    assert wide.A is not None
    assert wide.B is not None
    for i in range(grid.k_out):
        for j in range(grid.k_in):
            a = wide.A[j, :, i * grid.s : (i + 1) * grid.s]
            b = wide.B[i, j * grid.s : (j + 1) * grid.s]
            delta[i * m : (i + 1) * m, j * n : (j + 1) * n] = 0.75 * (a @ b).T
    exact = operands.weight.double() + delta
    _assert_rounded_once(_merge(operands), exact, torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["fp64", "bf16"])
@pytest.mark.parametrize("grid", ["wide", "hybrid_rectangular", "aligned"])
def test_a_weight_of_any_strides(
    grid: str, dtype: torch.dtype, layout: Layout, kernel_device: torch.device
) -> None:
    operands = make_operands(GRIDS[grid], dtype=dtype, device=kernel_device)
    operands = operands.map(layout, ["weight"])
    strides = operands.weight.stride()
    exact = _exact(operands)
    merged = _merge(operands)
    _assert_rounded_once(merged, exact, torch.float32 if dtype != torch.float64 else dtype)
    assert merged.stride() == strides


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("names", [*((name,) for name in FACTORS), FACTORS], ids="-".join)
def test_factors_of_any_strides(
    names: tuple[str, ...], layout: Layout, kernel_device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid_rectangular"], device=kernel_device)
    operands = operands.map(layout, names)
    exact = _exact(operands)
    torch.testing.assert_close(_merge(operands), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transpose", [False, True], ids=["row_major", "column_major"])
@pytest.mark.parametrize("step", [1, 2], ids=["dense", "every_second"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_nothing_outside_the_view_is_touched(
    dtype: torch.dtype, step: int, transpose: bool, kernel_device: torch.device
) -> None:
    grid = Grid(k_in=2, k_out=3, n=9, m=5, s=2, r0=3)
    operands = make_operands(grid, dtype=dtype, device=kernel_device)
    shape = (grid.N, grid.M) if transpose else (grid.M, grid.N)
    buffer = torch.full(
        (shape[0] + 6, step * shape[1] + 9), torch.nan, dtype=dtype, device=kernel_device
    )
    inside = torch.zeros_like(buffer, dtype=torch.bool)
    window = (slice(3, 3 + shape[0]), slice(5, 5 + step * shape[1], step))
    view = buffer[window].T if transpose else buffer[window]
    view.copy_(operands.weight)
    inside[window] = True
    exact = _exact(operands)
    torch.ops.gralora.merge_(view, *operands.factors(), scaling=operands.scaling)
    _assert_rounded_once(view, exact, torch.float32)
    assert bool(buffer[~inside].isnan().all())


def test_factors_are_not_written(kernel_device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=kernel_device)
    before = operands.map(contiguous, FACTORS)
    _merge(operands)
    for name in FACTORS:
        assert torch.equal(getattr(operands, name), getattr(before, name)), name


def test_the_operator_returns_nothing(kernel_device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=kernel_device)
    result = torch.ops.gralora.merge_(operands.weight, *operands.factors(), scaling=1.0)
    assert result is None


def test_merging_counts_as_a_change_of_the_weight(kernel_device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=kernel_device)
    before = operands.weight._version
    _merge(operands)
    assert operands.weight._version > before


def test_autograd_notices_a_merge_between_forward_and_backward(
    kernel_device: torch.device,
) -> None:
    operands = make_operands(GRIDS["hybrid"], device=kernel_device).requiring_grad(["x"])
    result = torch.nn.functional.linear(operands.x, operands.weight)
    _merge(operands)
    with pytest.raises(RuntimeError, match="inplace operation"):
        result.sum().backward()


@pytest.mark.parametrize("name", ["weight", *FACTORS])
def test_what_requires_a_gradient_is_refused_in_grad_mode(
    name: str, kernel_device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid"], device=kernel_device).requiring_grad([name])
    before = operands.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"gralora::merge_.*no_grad"):
        _merge(operands)
    assert torch.equal(operands.weight, before)


def test_parameters_are_merged_under_no_grad(kernel_device: torch.device) -> None:
    names = ["weight", *FACTORS]
    operands = make_operands(GRIDS["hybrid"], device=kernel_device).requiring_grad(names)
    exact = _exact(operands)
    with torch.no_grad():
        _merge(operands)
    assert operands.weight.requires_grad
    assert operands.weight.is_leaf
    torch.testing.assert_close(operands.weight.detach(), exact, rtol=1e-12, atol=1e-12)


def test_merging_in_inference_mode(kernel_device: torch.device) -> None:
    with torch.inference_mode():
        operands = make_operands(GRIDS["hybrid"], device=kernel_device)
        exact = _exact(operands)
        torch.testing.assert_close(_merge(operands), exact, rtol=1e-12, atol=1e-12)


def test_a_merge_in_inference_mode_counts_as_a_change_too(kernel_device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=kernel_device)
    before = operands.weight._version
    with torch.inference_mode():
        _merge(operands)
    assert operands.weight._version > before


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
@pytest.mark.parametrize("where", ["weight", *FACTORS])
def test_nonfinite_numbers_reach_what_the_reference_has_them_reach(
    where: str, value: float, kernel_device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid_rectangular"], device=kernel_device)
    getattr(operands, where).view(-1)[3] = value
    exact = _exact(operands)
    assert torch.equal(_merge(operands).isfinite(), exact.isfinite())


def test_scaling_and_sign_multiply(kernel_device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=kernel_device, scaling=-3.0)
    exact = _exact(operands, 0.5)
    torch.testing.assert_close(_merge(operands, 0.5), exact, rtol=1e-12, atol=1e-12)


def test_an_error_changes_nothing(kernel_device: torch.device) -> None:
    operands = make_operands(GRIDS["wide"], device=kernel_device)
    before = operands.weight.clone()
    version = operands.weight._version
    assert operands.A is not None
    with pytest.raises(RuntimeError):
        torch.ops.gralora.merge_(
            operands.weight, operands.A[:, :-1], operands.B, None, None, scaling=1.0
        )
    assert torch.equal(operands.weight, before)
    assert operands.weight._version == version


def test_a_weight_that_overlaps_itself_is_refused(kernel_device: torch.device) -> None:
    operands = make_operands(GRIDS["wide"], device=kernel_device)
    expanded = operands.weight[:1].clone().expand_as(operands.weight)
    with pytest.raises(RuntimeError, match=r"gralora::merge_.*weight|single memory location"):
        torch.ops.gralora.merge_(expanded, *operands.factors(), scaling=1.0)
