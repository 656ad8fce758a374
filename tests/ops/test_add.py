"""`gralora::add`: the adapter alone, added to a given y out of place."""

from __future__ import annotations

import pytest
import torch
from ops_cases import (
    ADD,
    FACTORS,
    GRIDS,
    Grid,
    assert_close,
    assert_gradients_close,
    expected_add,
    make_operands,
    run_add,
)

import gralora.functional

pytestmark = pytest.mark.usefixtures("poisoned_memory")
grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


@grids
def test_result_and_gradients(grid: Grid, device: torch.device) -> None:
    operands = make_operands(grid, device=device)
    expected, expected_gradients = expected_add(operands)
    result, gradients = run_add(operands)
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=torch.float64)


@pytest.mark.parametrize("leading", [(), (0,), (2, 3), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("grid", ["wide", "hybrid", "plain_pair_alone"])
def test_any_leading_dimensions(grid: str, leading: tuple[int, ...], device: torch.device) -> None:
    operands = make_operands(GRIDS[grid], leading, device=device)
    expected, expected_gradients = expected_add(operands)
    result, gradients = run_add(operands)
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=torch.float64)


def test_y_is_not_written(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    before = operands.y.clone()
    operands.add()
    assert torch.equal(operands.y, before)


def test_y_may_be_the_result_of_another_layer(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    _, expected = expected_add(operands)
    leaves = operands.requiring_grad(["x"])
    y = leaves.x @ operands.weight.T
    chained = torch.ops.gralora.add(y, leaves.x, *leaves.factors(), scaling=leaves.scaling)
    chained.backward(operands.dy)
    assert leaves.x.grad is not None
    assert_close(leaves.x.grad, expected["x"] + operands.dy @ operands.weight)


def test_add_to_the_base_layer_is_linear(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    y = torch.nn.functional.linear(operands.x, operands.weight, operands.bias)
    result = torch.ops.gralora.add(y, operands.x, *operands.factors(), scaling=operands.scaling)
    assert_close(result, operands.linear())


@pytest.mark.parametrize("wanted", ADD)
def test_one_gradient_alone_is_right(wanted: str, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    _, expected = expected_add(operands)
    leaves = operands.requiring_grad([wanted])
    (gradient,) = torch.autograd.grad(leaves.add(), [getattr(leaves, wanted)], leaves.dy)
    assert_close(gradient, expected[wanted])


def test_functional_is_the_operator(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    result = gralora.functional.gralora_add(
        operands.y,
        operands.x,
        operands.A,
        operands.B,
        scaling=operands.scaling,
        lora_A=operands.lora_A,
        lora_B=operands.lora_B,
    )
    assert torch.equal(result, operands.add())


def test_gradients_flow_through_functional(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    _, expected = expected_add(operands)
    leaves = operands.requiring_grad(FACTORS)
    gralora.functional.gralora_add(
        leaves.y,
        leaves.x,
        leaves.A,
        leaves.B,
        scaling=leaves.scaling,
        lora_A=leaves.lora_A,
        lora_B=leaves.lora_B,
    ).backward(leaves.dy)
    gradients = {name: leaf.grad for name, leaf in leaves.named(FACTORS).items()}
    assert_gradients_close(
        gradients, {name: expected[name] for name in FACTORS}, dtype=torch.float64
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
@pytest.mark.parametrize("where", ADD)
def test_nonfinite_numbers_reach_what_the_reference_has_them_reach(
    where: str, value: float, device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid_rectangular"], device=device)
    getattr(operands, where).view(-1)[3] = value
    expected, expected_gradients = expected_add(operands)
    result, gradients = run_add(operands)
    assert torch.equal(result.isfinite(), expected.isfinite())
    for name, gradient in gradients.items():
        assert torch.equal(gradient.isfinite(), expected_gradients[name].isfinite()), name


@pytest.mark.parametrize("of_y", [torch.float32, torch.float64], ids=["fp32_y", "fp64_y"])
def test_the_result_has_the_dtype_of_y(of_y: torch.dtype, device: torch.device) -> None:
    operands = make_operands(
        GRIDS["hybrid"], dtype=torch.bfloat16, factor_dtype=torch.float32, device=device
    ).map(lambda t: t.to(of_y), ["y", "dy"])
    expected, expected_gradients = expected_add(operands)
    result, gradients = run_add(operands)
    assert result.dtype == of_y
    assert_close(result, expected, dtype=torch.bfloat16)
    assert_gradients_close(gradients, expected_gradients, dtype=torch.bfloat16)


def test_each_gradient_has_the_dtype_of_its_operand(device: torch.device) -> None:
    operands = make_operands(
        GRIDS["hybrid"], dtype=torch.bfloat16, factor_dtype=torch.float32, device=device
    ).map(torch.Tensor.double, ["y", "dy"])
    _, gradients = run_add(operands)
    expected = {name: operand.dtype for name, operand in operands.named(ADD).items()}
    assert {name: gradient.dtype for name, gradient in gradients.items()} == expected
