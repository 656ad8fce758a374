"""`gralora::delta_weight`: the dense update of an adapter."""

from __future__ import annotations

import pytest
import torch
from ops_cases import (
    FACTORS,
    GRIDS,
    TOLERANCE,
    Grid,
    Operands,
    assert_close,
    assert_gradients_close,
    make_operands,
)
from ops_layouts import LAYOUTS, Layout
from ops_naive import naive_delta_weight
from torch import Tensor

import gralora.functional
import gralora.reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")
grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def _delta(operands: Operands) -> Tensor:
    return torch.ops.gralora.delta_weight(*operands.factors(), scaling=operands.scaling)


def _expected(operands: Operands) -> Tensor:
    delta = naive_delta_weight(*operands.factors(), scaling=operands.scaling)
    return delta.to(operands.x.device)


@grids
def test_value_is_the_sum_of_products(grid: Grid, device: torch.device) -> None:
    operands = make_operands(grid, device=device)
    assert_close(_delta(operands), _expected(operands))


@grids
def test_value_is_the_reference(grid: Grid, device: torch.device) -> None:
    operands = make_operands(grid, device=device)
    expected = gralora.reference.delta_weight(
        operands.A,
        operands.B,
        scaling=operands.scaling,
        lora_A=operands.lora_A,
        lora_B=operands.lora_B,
    )
    assert_close(_delta(operands), expected)


@grids
def test_gradients_are_the_reference(grid: Grid, device: torch.device) -> None:
    operands = make_operands(grid, device=device)
    dy = torch.randn_like(operands.weight)
    leaves = operands.requiring_grad(FACTORS)
    given = leaves.named(FACTORS)
    gradients = torch.autograd.grad(_delta(leaves), list(given.values()), dy)
    reference = gralora.reference.delta_weight(
        leaves.A, leaves.B, scaling=leaves.scaling, lora_A=leaves.lora_A, lora_B=leaves.lora_B
    )
    expected = torch.autograd.grad(reference, list(given.values()), dy)
    assert_gradients_close(
        dict(zip(given, gradients, strict=True)),
        dict(zip(given, expected, strict=True)),
        dtype=torch.float64,
    )


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("grid", ["wide", "hybrid", "plain_pair_alone"])
def test_value_has_the_dtype_of_the_factors(
    grid: str, dtype: torch.dtype, device: torch.device
) -> None:
    operands = make_operands(GRIDS[grid], dtype=dtype, device=device)
    delta = _delta(operands)
    assert delta.dtype == dtype
    # Rounded once, so within a unit in the last place.
    assert_close(delta, _expected(operands), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("grid", ["wide", "plain_pair_alone"])
def test_a_low_precision_value_is_rounded_once(
    grid: str, dtype: torch.dtype, device: torch.device
) -> None:
    operands = make_operands(GRIDS[grid], dtype=dtype, device=device)
    exact = _expected(operands)
    differing = _delta(operands) != exact.to(dtype)
    # fp32 sums differ from fp64 ones near a tie of the rounding, and nowhere else.
    assert differing.double().mean() < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("grid", ["wide", "hybrid", "plain_pair_alone"])
def test_trainable_factors_give_the_value_of_frozen_ones(
    grid: str, dtype: torch.dtype, device: torch.device
) -> None:
    operands = make_operands(GRIDS[grid], dtype=dtype, device=device)
    trainable = _delta(operands.requiring_grad(FACTORS)).detach()
    # Sums in another order may round another way near a tie; a second rounding would everywhere.
    assert (trainable != _delta(operands)).double().mean() < 0.02


def test_factors_of_several_dtypes_give_the_widest(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], dtype=torch.bfloat16, device=device)
    mixed = operands.map(Tensor.float, ["lora_A", "lora_B"])
    delta = _delta(mixed)
    assert delta.dtype == torch.float32
    assert_close(delta, _expected(mixed), dtype=torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["fp64", "bf16"])
@pytest.mark.parametrize("names", [*((name,) for name in FACTORS), FACTORS], ids="-".join)
def test_factors_of_any_strides(
    names: tuple[str, ...], dtype: torch.dtype, layout: Layout, device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid_rectangular"], dtype=dtype, device=device)
    assert_close(_delta(operands.map(layout, names)), _expected(operands), dtype=dtype)


def test_value_is_row_major(device: torch.device) -> None:
    assert _delta(make_operands(GRIDS["hybrid"], device=device)).is_contiguous()


def test_one_block_is_the_product_of_plain_lora(device: torch.device) -> None:
    operands = make_operands(GRIDS["lora"], device=device)
    assert operands.A is not None
    assert operands.B is not None
    assert_close(_delta(operands), operands.scaling * (operands.A[0] @ operands.B[0]).T)


def test_functional_is_the_operator(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    result = gralora.functional.delta_weight(
        operands.A,
        operands.B,
        scaling=operands.scaling,
        lora_A=operands.lora_A,
        lora_B=operands.lora_B,
    )
    assert torch.equal(result, _delta(operands))


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
@pytest.mark.parametrize("where", FACTORS)
def test_nonfinite_numbers_reach_what_the_reference_has_them_reach(
    where: str, value: float, device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid_rectangular"], device=device)
    getattr(operands, where).view(-1)[3] = value
    assert torch.equal(_delta(operands).isfinite(), _expected(operands).isfinite())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_gradients_have_the_dtypes_of_the_factors(dtype: torch.dtype, device: torch.device) -> None:
    leaves = make_operands(GRIDS["hybrid"], dtype=dtype, device=device)
    leaves = leaves.map(Tensor.float, ["A"]).requiring_grad(FACTORS)
    _delta(leaves).float().sum().backward()
    for name, leaf in leaves.named(FACTORS).items():
        assert leaf.grad is not None, name
        assert leaf.grad.dtype == leaf.dtype, name


def test_low_precision_gradients(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], dtype=torch.bfloat16, device=device)
    dy = torch.randn_like(operands.weight)
    gradients = []
    for change in (Tensor.bfloat16, Tensor.double):
        leaves = operands.map(change, FACTORS).requiring_grad(FACTORS)
        given = list(leaves.named(FACTORS).values())
        gradients.append(torch.autograd.grad(_delta(leaves), given, change(dy)))
    for low, exact in zip(*gradients, strict=True):
        error = (low.double() - exact).norm() / exact.norm()
        assert error < TOLERANCE[torch.bfloat16]
