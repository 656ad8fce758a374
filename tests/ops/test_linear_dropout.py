"""Dropout inside `gralora::linear` and `gralora::add`: one mask for both parts and both ways."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ops_calls import call_of
from ops_cases import (
    ADD,
    FACTORS,
    GRIDS,
    LINEAR,
    Grid,
    Operands,
    assert_close,
    assert_gradients_close,
    expected_add,
    expected_linear,
    make_operands,
)
from ops_philox import keep_mask
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import gralora.functional

operators = pytest.mark.parametrize("operator", ["linear", "add"])
T, WIDTH = 40, 48


def _identity(device: torch.device, scaling: float = 1.0) -> Operands:
    """Operands whose result is the dropped-out x: the base is zero, the adapter the identity."""
    grid = Grid(n=WIDTH, m=WIDTH, s=WIDTH, r0=WIDTH)
    operands = make_operands(grid, (T,), device=device, scaling=scaling)
    eye = torch.eye(WIDTH, dtype=torch.float64, device=device)
    operands = operands.map(lambda _: eye[None].clone(), ["A", "B"])
    operands = operands.map(lambda _: eye.clone(), ["lora_A", "lora_B"])
    return operands.map(torch.zeros_like, ["weight", "bias", "y"]).map(torch.ones_like, ["x", "dy"])


def _grid_alone(device: torch.device) -> Operands:
    return replace(_identity(device), lora_A=None, lora_B=None)


def _call(operator: str, operands: Operands, **options: object) -> Tensor:
    return getattr(operands, operator)(**options)


@operators
@pytest.mark.parametrize("grid", ["wide", "hybrid", "plain_pair_alone"])
@pytest.mark.parametrize("p", [1e-9, 0.3, 1.0])
def test_a_given_state_drops_what_the_independent_generator_drops(
    operator: str, grid: str, p: float, device: torch.device
) -> None:
    operands = make_operands(GRIDS[grid], (2, 5), device=device)
    keep = keep_mask(torch.tensor([12345, -678]), 10, GRIDS[grid].N, p).to(device)
    result = call_of(f"{operator}_forward", operands, dropout_p=p)()[0]
    expect = expected_linear if operator == "linear" else expected_add
    assert_close(result, expect(operands, keep, p)[0])


@operators
@pytest.mark.parametrize("grid", ["wide", "hybrid", "plain_pair_alone"])
@pytest.mark.parametrize("p", [1e-9, 0.3, 1.0])
def test_gradients_of_a_given_state(
    operator: str, grid: str, p: float, device: torch.device
) -> None:
    operands = make_operands(GRIDS[grid], (2, 5), device=device)
    keep = keep_mask(torch.tensor([12345, -678]), 10, GRIDS[grid].N, p).to(device)
    names = LINEAR if operator == "linear" else ADD
    expect = expected_linear if operator == "linear" else expected_add
    _, expected = expect(operands, keep, p)
    leaves = operands.requiring_grad(names)
    result = call_of(f"{operator}_forward", leaves, dropout_p=p)()[0]
    given = leaves.named(names)
    gradients = torch.autograd.grad(result, list(given.values()), leaves.dy)
    assert_gradients_close(dict(zip(given, gradients, strict=True)), expected, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_low_precision(dtype: torch.dtype, device: torch.device) -> None:
    operands = make_operands(
        GRIDS["hybrid"], (33,), dtype=dtype, factor_dtype=torch.float32, device=device
    )
    keep = keep_mask(torch.tensor([12345, -678]), 33, GRIDS["hybrid"].N, 0.3).to(device)
    expected, expected_gradients = expected_linear(operands, keep, 0.3)
    leaves = operands.requiring_grad(LINEAR)
    result = call_of("linear_forward", leaves, dropout_p=0.3)()[0]
    given = leaves.named(LINEAR)
    gradients = torch.autograd.grad(result, list(given.values()), leaves.dy)
    assert_close(result, expected)
    assert_gradients_close(
        dict(zip(given, gradients, strict=True)), expected_gradients, dtype=dtype
    )


@operators
def test_the_base_layer_sees_x_without_dropout(operator: str, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    result = _call(operator, operands, dropout_p=1.0)
    base = torch.nn.functional.linear(operands.x, operands.weight, operands.bias)
    assert_close(result, base if operator == "linear" else operands.y)


@operators
def test_both_parts_of_a_hybrid_have_one_mask(operator: str, device: torch.device) -> None:
    operands = _identity(device)
    opposite = operands.map(torch.neg, ["lora_B"])
    result = _call(operator, opposite, dropout_p=0.5)
    assert torch.equal(result, torch.zeros_like(result))


@operators
def test_forward_and_backward_have_one_mask(operator: str, device: torch.device) -> None:
    leaves = _identity(device).requiring_grad(["x"])
    result = _call(operator, leaves, dropout_p=0.5)
    (dx,) = torch.autograd.grad(result, [leaves.x], leaves.dy)
    assert torch.equal(dx != 0, result != 0)


@operators
def test_the_gradients_of_the_factors_see_the_mask_of_the_forward(
    operator: str, device: torch.device
) -> None:
    leaves = _identity(device).requiring_grad(FACTORS)
    result = _call(operator, leaves, dropout_p=0.5)
    result.backward(leaves.dy)
    # Each row of dB is the column sums of the dropped-out x, and the result is twice that x.
    assert leaves.B is not None
    assert leaves.B.grad is not None
    assert leaves.A is not None
    assert leaves.A.grad is not None
    columns = result.detach().sum(dim=0) / 2
    assert_close(leaves.B.grad[0, :, 0], columns)
    assert_close(leaves.A.grad[0, :, 0], columns)


@operators
def test_the_seed_reproduces_the_mask(operator: str, device: torch.device) -> None:
    operands = _grid_alone(device)
    torch.manual_seed(5)
    first = _call(operator, operands, dropout_p=0.5)
    torch.manual_seed(5)
    assert torch.equal(_call(operator, operands, dropout_p=0.5), first)


@operators
def test_another_seed_is_another_mask(operator: str, device: torch.device) -> None:
    operands = _grid_alone(device)
    torch.manual_seed(5)
    first = _call(operator, operands, dropout_p=0.5)
    torch.manual_seed(6)
    assert not torch.equal(_call(operator, operands, dropout_p=0.5), first)


@operators
def test_each_call_draws_a_fresh_mask(operator: str, device: torch.device) -> None:
    operands = _grid_alone(device)
    masks = {
        tuple((_call(operator, operands, dropout_p=0.5) != 0).view(-1).tolist()) for _ in range(20)
    }
    assert len(masks) == 20


@operators
def test_evaluation_keeps_everything(operator: str, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    evaluated = _call(operator, operands, dropout_p=0.5, training=False)
    assert torch.equal(evaluated, _call(operator, operands))


@operators
@pytest.mark.parametrize("options", [{"dropout_p": 0.5, "training": False}, {"dropout_p": 0.0}])
def test_without_dropout_the_generator_is_left_alone(
    operator: str, options: dict[str, object], device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    torch.manual_seed(5)
    expected = torch.rand(4, device=device)
    torch.manual_seed(5)
    _call(operator, operands, **options)
    assert torch.equal(torch.rand(4, device=device), expected)


@operators
def test_the_same_share_is_dropped(operator: str, device: torch.device) -> None:
    operands = _grid_alone(device)
    dropped = torch.stack([_call(operator, operands, dropout_p=0.25) == 0 for _ in range(20)])
    assert abs(float(dropped.double().mean()) - 0.25) < 5 * (0.25 * 0.75 / dropped.numel()) ** 0.5


@pytest.mark.parametrize("operator", ["linear", "add"])
def test_functional_passes_dropout_and_training_on(operator: str, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    plain = {"lora_A": operands.lora_A, "lora_B": operands.lora_B, "scaling": operands.scaling}
    if operator == "linear":
        given = (operands.x, operands.weight, operands.bias, operands.A, operands.B)
        function = gralora.functional.gralora_linear
    else:
        given = (operands.y, operands.x, operands.A, operands.B)
        function = gralora.functional.gralora_add
    torch.manual_seed(5)
    dropped = _call(operator, operands, dropout_p=0.5)
    torch.manual_seed(5)
    assert torch.equal(function(*given, **plain, dropout_p=0.5), dropped)
    kept = function(*given, **plain, dropout_p=0.5, training=False)
    assert torch.equal(kept, _call(operator, operands))


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not_reentrant", "reentrant"])
def test_checkpointing_redraws_the_mask_of_the_forward(
    use_reentrant: bool, device: torch.device
) -> None:
    leaves = _grid_alone(device).requiring_grad(["x"])

    def function(x: Tensor) -> Tensor:
        return leaves.map(lambda _: x, ["x"]).linear(dropout_p=0.5)

    result = checkpoint(function, leaves.x, use_reentrant=use_reentrant)
    torch.rand(3, device=device)  # The generator moves on between forward and backward.
    result.backward(leaves.dy)
    assert leaves.x.grad is not None
    assert torch.equal(leaves.x.grad != 0, result != 0)
