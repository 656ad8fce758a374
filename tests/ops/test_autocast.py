"""Autocast casts x, weight and bias (y too, for `add`), and never the factors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ops_cases import (
    ADD,
    FACTORS,
    GRIDS,
    LINEAR,
    Operands,
    assert_close,
    assert_gradients_close,
    expected_add,
    expected_linear,
    make_operands,
    relative_error,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")

TO = [torch.bfloat16, torch.float16]
casts = pytest.mark.parametrize("to", TO, ids=["bf16", "fp16"])


def _autocast_linear(
    operands: Operands, to: torch.dtype
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    leaves = operands.requiring_grad(LINEAR)
    with torch.autocast(operands.x.device.type, dtype=to):
        result = leaves.linear()
    result.backward(operands.dy.to(result.dtype))
    gradients = {name: leaf.grad for name, leaf in leaves.named(LINEAR).items()}
    assert all(gradient is not None for gradient in gradients.values())
    return result.detach(), {name: value for name, value in gradients.items() if value is not None}


@casts
def test_result_has_the_dtype_of_autocast(to: torch.dtype, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], dtype=torch.float32, device=device)
    with torch.autocast(device.type, dtype=to):
        assert operands.linear().dtype == to


@casts
@pytest.mark.parametrize("grid", ["wide", "hybrid", "plain_pair_alone"])
def test_values_and_gradients(grid: str, to: torch.dtype, device: torch.device) -> None:
    operands = make_operands(GRIDS[grid], (33,), dtype=torch.float32, device=device)
    expected, expected_gradients = expected_linear(operands)
    result, gradients = _autocast_linear(operands, to)
    assert_close(result, expected, dtype=to)
    assert_gradients_close(gradients, expected_gradients, dtype=to)


@casts
def test_result_is_that_of_operands_cast_by_hand(to: torch.dtype, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], dtype=torch.float32, device=device)
    with torch.autocast(device.type, dtype=to):
        result = operands.linear()
    by_hand = operands.map(lambda t: t.to(to), ["x", "weight", "bias"])
    assert torch.equal(result, by_hand.linear())


@casts
def test_gradients_have_the_dtypes_of_the_operands(to: torch.dtype, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], dtype=torch.float32, device=device)
    _, gradients = _autocast_linear(operands, to)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


@casts
@pytest.mark.parametrize("name", FACTORS)
def test_gradients_of_the_factors_are_not_rounded(
    name: str, to: torch.dtype, device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid"], (33,), dtype=torch.float32, device=device)
    _, gradients = _autocast_linear(operands, to)
    gradient = gradients[name]
    assert (gradient == gradient.to(to).float()).float().mean() < 0.2


@casts
def test_half_precision_operands_are_cast_too(to: torch.dtype, device: torch.device) -> None:
    other = torch.float16 if to == torch.bfloat16 else torch.bfloat16
    operands = make_operands(
        GRIDS["hybrid"], dtype=other, factor_dtype=torch.float32, device=device
    )
    with torch.autocast(device.type, dtype=to):
        assert operands.linear().dtype == to


def test_x_in_half_precision_beside_an_fp32_weight(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], dtype=torch.float32, device=device)
    expected, _ = expected_linear(operands)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        result = replace(operands, x=operands.x.bfloat16()).linear()
    assert_close(result, expected, dtype=torch.bfloat16)


def test_autocast_switched_off_changes_nothing(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], dtype=torch.float32, device=device)
    outside = operands.linear()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=False):
        inside = operands.linear()
    assert torch.equal(inside, outside)


def test_backward_outside_autocast_is_the_backward_inside(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], dtype=torch.float32, device=device)
    _, outside = _autocast_linear(operands, torch.bfloat16)
    leaves = operands.requiring_grad(LINEAR)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        result = leaves.linear()
        result.backward(operands.dy.to(result.dtype))
    for name, leaf in leaves.named(LINEAR).items():
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, outside[name]), name


@casts
def test_dropout_under_autocast_gives_the_dtype_of_autocast(
    to: torch.dtype, device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid"], dtype=torch.float32, device=device)
    with torch.autocast(device.type, dtype=to):
        result = operands.linear(dropout_p=0.5)
    assert result.dtype == to
    assert bool(result.isfinite().all())


@casts
def test_add_computes_in_the_dtype_of_autocast(to: torch.dtype, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], (33,), dtype=torch.float32, device=device)
    # A base layer under autocast hands over y in the low dtype and x in fp32.
    operands = replace(operands, y=operands.y.to(to))
    expected, _ = expected_add(operands)
    with torch.autocast(device.type, dtype=to):
        result = operands.add()
    assert result.dtype == to
    assert_close(result, expected)


@casts
@pytest.mark.parametrize("name", FACTORS)
def test_gradients_of_the_factors_of_add_are_not_rounded(
    name: str, to: torch.dtype, device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid"], (33,), dtype=torch.float32, device=device)
    leaves = operands.requiring_grad(ADD)
    with torch.autocast(device.type, dtype=to):
        result = leaves.add()
    result.backward(operands.dy.to(result.dtype))
    gradient = getattr(leaves, name).grad
    assert gradient.dtype == torch.float32
    assert (gradient == gradient.to(to).float()).float().mean() < 0.2


def test_add_gradients_under_autocast(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], (33,), dtype=torch.float32, device=device)
    _, expected = expected_add(operands)
    leaves = operands.requiring_grad(ADD)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        result = leaves.add()
    result.backward(operands.dy.to(result.dtype))
    for name, leaf in leaves.named(ADD).items():
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32
        assert relative_error(leaf.grad, expected[name]) < 1.5e-2, name
