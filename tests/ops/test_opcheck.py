"""`torch.library.opcheck`: schema, autograd registration, fake tensors and AOT dispatch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops_calls import OPERATORS, Call, call_of
from ops_cases import FACTORS, GRIDS, LINEAR, Operands, make_operands
from ops_layouts import strided, transposed

WITHOUT_AOT = ("test_schema", "test_autograd_registration", "test_faketensor")
ALL = (*WITHOUT_AOT, "test_aot_dispatch_dynamic")


def _bf16(device: torch.device) -> Operands:
    return make_operands(
        GRIDS["hybrid"], dtype=torch.bfloat16, factor_dtype=torch.float32, device=device
    )


INPUTS = {
    "grid": lambda device: make_operands(GRIDS["wide"], (2, 3), device=device),
    "hybrid": lambda device: make_operands(GRIDS["hybrid"], (5,), bias=False, device=device),
    "plain_pair": lambda device: make_operands(GRIDS["plain_pair_alone"], device=device),
    "one_token": lambda device: make_operands(GRIDS["hybrid"], (), device=device),
    "zero_tokens": lambda device: make_operands(GRIDS["hybrid"], (2, 0), device=device),
    "bf16_x_fp32_factors": _bf16,
    "transposed": lambda device: make_operands(GRIDS["hybrid"], device=device).map(
        transposed, [*LINEAR, "y", "dy"]
    ),
    "strided": lambda device: make_operands(GRIDS["square"], device=device).map(
        strided, [*LINEAR, "y", "dy"]
    ),
}
# Tracing a call takes a second, so only a few inputs go through AOT dispatch.
TRACED = ("hybrid", "zero_tokens", "bf16_x_fp32_factors")
inputs = pytest.mark.parametrize("name", INPUTS)


def _trainable(operands: Operands) -> Operands:
    return operands.requiring_grad([*LINEAR, "y"])


def _tests(name: str) -> tuple[str, ...]:
    return ALL if name in TRACED else WITHOUT_AOT


def _check(call: Call, tests: tuple[str, ...]) -> None:
    outcome: dict[str, Any] = torch.library.opcheck(
        call.overload, call.args, call.kwargs, test_utils=tests
    )
    assert set(outcome) == set(tests)
    assert set(outcome.values()) == {"SUCCESS"}


@inputs
@pytest.mark.parametrize("operator", ["linear", "linear_forward", "add", "add_forward"])
def test_forward_operators(operator: str, name: str, device: torch.device) -> None:
    _check(call_of(operator, _trainable(INPUTS[name](device))), _tests(name))


@inputs
@pytest.mark.parametrize("operator", ["linear_backward", "add_backward"])
@pytest.mark.parametrize("mask", ["all", "factors"])
def test_backward_operators(operator: str, mask: str, name: str, device: torch.device) -> None:
    _check(call_of(operator, INPUTS[name](device), mask=mask), _tests(name))


@inputs
def test_delta_weight(name: str, device: torch.device) -> None:
    _check(call_of("delta_weight", INPUTS[name](device)), _tests(name))


def test_delta_weight_of_trainable_factors(device: torch.device) -> None:
    operands = INPUTS["hybrid"](device).requiring_grad(FACTORS)
    _check(call_of("delta_weight", operands), ALL)


@inputs
def test_merge(name: str, kernel_device: torch.device) -> None:
    _check(call_of("merge_", INPUTS[name](kernel_device)), _tests(name))


@inputs
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout(p: float, name: str, kernel_device: torch.device) -> None:
    _check(call_of("dropout", _trainable(INPUTS[name](kernel_device)), dropout_p=p), _tests(name))


@pytest.mark.parametrize("name", ["hybrid", "zero_tokens"])
@pytest.mark.parametrize(
    "operator", [each for each in OPERATORS if each.endswith(("forward", "backward"))]
)
def test_dropout_of_a_given_state(operator: str, name: str, kernel_device: torch.device) -> None:
    operands = INPUTS[name](kernel_device)
    if operator.endswith("forward"):
        operands = _trainable(operands)
    _check(call_of(operator, operands, dropout_p=0.3), ALL)


@pytest.mark.parametrize("operator", ["linear", "add"])
def test_dropout_of_a_drawn_state(operator: str, kernel_device: torch.device) -> None:
    operands = _trainable(INPUTS["hybrid"](kernel_device))
    # A fresh mask per call: no two runs can be compared, as AOT dispatch would.
    _check(call_of(operator, operands, dropout_p=0.3), WITHOUT_AOT)
