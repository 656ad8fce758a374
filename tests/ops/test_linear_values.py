"""`gralora::linear` in fp64: values and every gradient against the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ops_cases import (
    FACTORS,
    GRIDS,
    LINEAR,
    Grid,
    assert_close,
    assert_gradients_close,
    dense,
    expected_linear,
    make_operands,
    run_linear,
)
from ops_naive import naive_delta_weight

import gralora.functional

pytestmark = pytest.mark.usefixtures("poisoned_memory")
grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


@grids
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_result_is_the_reference(grid: Grid, bias: bool, device: torch.device) -> None:
    operands = make_operands(grid, bias=bias, device=device)
    expected, _ = expected_linear(operands)
    assert_close(operands.linear(), expected)


@grids
def test_result_is_the_dense_layer(grid: Grid, device: torch.device) -> None:
    operands = make_operands(grid, device=device)
    delta = naive_delta_weight(*operands.factors(), scaling=operands.scaling)
    assert_close(operands.linear(), dense(delta, operands))


@grids
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_every_gradient_is_the_reference(grid: Grid, bias: bool, device: torch.device) -> None:
    operands = make_operands(grid, bias=bias, device=device)
    _, expected = expected_linear(operands)
    _, gradients = run_linear(operands)
    assert_gradients_close(gradients, expected, dtype=torch.float64)


@pytest.mark.parametrize("leading", [(), (1,), (6,), (2, 3), (2, 1, 4)], ids=str)
@pytest.mark.parametrize("grid", ["wide", "hybrid", "plain_pair_alone"])
def test_any_number_of_leading_dimensions(
    grid: str, leading: tuple[int, ...], device: torch.device
) -> None:
    operands = make_operands(GRIDS[grid], leading, device=device)
    expected, expected_gradients = expected_linear(operands)
    result, gradients = run_linear(operands)
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=torch.float64)


@pytest.mark.parametrize("leading", [(0,), (2, 0), (0, 3)], ids=str)
@pytest.mark.parametrize("grid", ["wide", "hybrid", "plain_pair_alone"])
def test_zero_tokens_give_an_empty_result(
    grid: str, leading: tuple[int, ...], device: torch.device
) -> None:
    operands = make_operands(GRIDS[grid], leading, device=device)
    assert operands.linear().shape == (*leading, GRIDS[grid].M)


@pytest.mark.parametrize("leading", [(0,), (2, 0)], ids=str)
@pytest.mark.parametrize("grid", ["wide", "hybrid", "plain_pair_alone"])
def test_zero_tokens_give_zero_gradients(
    grid: str, leading: tuple[int, ...], device: torch.device
) -> None:
    operands = make_operands(GRIDS[grid], leading, device=device)
    _, gradients = run_linear(operands)
    for name, operand in operands.named(LINEAR).items():
        assert torch.equal(gradients[name], torch.zeros_like(operand)), name


def test_one_block_is_plain_lora(device: torch.device) -> None:
    grid = make_operands(GRIDS["lora"], device=device)
    assert grid.A is not None
    assert grid.B is not None
    plain = replace(grid, A=None, B=None, lora_A=grid.A[0].T, lora_B=grid.B[0].T)
    assert_close(grid.linear(), plain.linear())


def test_gradients_of_one_block_are_those_of_plain_lora(device: torch.device) -> None:
    grid = make_operands(GRIDS["lora"], device=device)
    assert grid.A is not None
    assert grid.B is not None
    plain = replace(grid, A=None, B=None, lora_A=grid.A[0].T, lora_B=grid.B[0].T)
    _, of_grid = run_linear(grid)
    _, of_plain = run_linear(plain)
    assert_close(of_grid["A"][0].T, of_plain["lora_A"])
    assert_close(of_grid["B"][0].T, of_plain["lora_B"])


@pytest.mark.parametrize("scaling", [0.0, 1.0, -2.5, 1 / 64, 16.0])
def test_scaling_multiplies_the_update(scaling: float, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid_rectangular"], scaling=scaling, device=device)
    expected, expected_gradients = expected_linear(operands)
    result, gradients = run_linear(operands)
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=torch.float64)


@pytest.mark.parametrize("wanted", LINEAR)
def test_one_gradient_alone_is_right(wanted: str, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    _, expected = expected_linear(operands)
    leaves = operands.requiring_grad([wanted])
    (gradient,) = torch.autograd.grad(leaves.linear(), [getattr(leaves, wanted)], leaves.dy)
    assert_close(gradient, expected[wanted])


def test_trainable_weight_and_bias_accumulate_into_grad(device: torch.device) -> None:
    operands = make_operands(GRIDS["wide"], device=device)
    _, expected = expected_linear(operands)
    leaves = operands.requiring_grad(["weight", "bias"])
    leaves.linear().backward(leaves.dy)
    leaves.linear().backward(leaves.dy)
    assert leaves.weight.grad is not None
    assert leaves.bias is not None
    assert leaves.bias.grad is not None
    assert_close(leaves.weight.grad, 2 * expected["weight"])
    assert_close(leaves.bias.grad, 2 * expected["bias"])


def test_result_of_frozen_operands_requires_no_gradient(device: torch.device) -> None:
    assert not make_operands(GRIDS["hybrid"], device=device).linear().requires_grad


def test_no_operand_is_written(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    before = {name: value.clone() for name, value in operands.named((*LINEAR, "dy")).items()}
    run_linear(operands)
    for name, value in before.items():
        assert torch.equal(getattr(operands, name), value), name


@pytest.mark.parametrize("grid", ["wide", "hybrid", "plain_pair_alone"])
def test_functional_is_the_operator(grid: str, device: torch.device) -> None:
    operands = make_operands(GRIDS[grid], device=device)
    result = gralora.functional.gralora_linear(
        operands.x,
        operands.weight,
        operands.bias,
        operands.A,
        operands.B,
        scaling=operands.scaling,
        lora_A=operands.lora_A,
        lora_B=operands.lora_B,
    )
    assert torch.equal(result, operands.linear())


def test_gradients_flow_through_functional(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    _, expected = expected_linear(operands)
    leaves = operands.requiring_grad(FACTORS)
    gralora.functional.gralora_linear(
        leaves.x,
        leaves.weight,
        leaves.bias,
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


NONFINITE = [float("nan"), float("inf")]


@pytest.mark.parametrize("value", NONFINITE, ids=["nan", "inf"])
@pytest.mark.parametrize("where", LINEAR)
def test_nonfinite_numbers_reach_what_the_reference_has_them_reach(
    where: str, value: float, device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid_rectangular"], device=device)
    getattr(operands, where).view(-1)[3] = value
    expected, _ = expected_linear(operands)
    assert torch.equal(operands.linear().isfinite(), expected.isfinite())


@pytest.mark.parametrize("value", NONFINITE, ids=["nan", "inf"])
@pytest.mark.parametrize("where", [*LINEAR, "dy"])
def test_nonfinite_numbers_reach_the_gradients_that_the_reference_has_them_reach(
    where: str, value: float, device: torch.device
) -> None:
    operands = make_operands(GRIDS["wide"], device=device)
    if getattr(operands, where) is None:
        pytest.skip("a grid without a plain pair")
    getattr(operands, where).view(-1)[3] = value
    _, expected = expected_linear(operands)
    _, gradients = run_linear(operands)
    for name, gradient in gradients.items():
        assert torch.equal(gradient.isfinite(), expected[name].isfinite()), name


def test_a_nan_token_leaves_the_other_tokens_alone(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], (5,), device=device)
    expected, _ = expected_linear(operands)
    operands.x[2] = float("nan")
    result = operands.linear()
    others = [0, 1, 3, 4]
    assert_close(result[others], expected[others])
    assert bool(result[2].isnan().all())
