"""`torch.library.opcheck`: schema, autograd registration, fake tensors and AOT dispatch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops_calls import OPERATORS, Call, call_of
from ops_cases import FACTORS, GRIDS, LINEAR, Operands, make_operands
from ops_layouts import strided, transposed

ALL = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
# A fresh mask per call: no two runs of these can be compared.
RANDOM = ("test_schema", "test_autograd_registration", "test_faketensor")


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
inputs = pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS.keys())


def _trainable(operands: Operands) -> Operands:
    return operands.requiring_grad([*LINEAR, "y"])


def _check(call: Call, tests: tuple[str, ...] = ALL) -> None:
    outcome: dict[str, Any] = torch.library.opcheck(
        call.overload, call.args, call.kwargs, test_utils=tests
    )
    assert set(outcome) == set(tests)
    assert set(outcome.values()) == {"SUCCESS"}


@inputs
@pytest.mark.parametrize("operator", ["linear", "linear_forward", "add", "add_forward"])
def test_forward_operators(operator: str, make: Any, device: torch.device) -> None:
    _check(call_of(operator, _trainable(make(device))))


@inputs
@pytest.mark.parametrize("operator", ["linear_backward", "add_backward"])
@pytest.mark.parametrize("mask", ["all", "factors"])
def test_backward_operators(operator: str, mask: str, make: Any, device: torch.device) -> None:
    _check(call_of(operator, make(device), mask=mask))


@inputs
def test_delta_weight(make: Any, device: torch.device) -> None:
    _check(call_of("delta_weight", make(device).requiring_grad(FACTORS)))


@inputs
def test_merge(make: Any, kernel_device: torch.device) -> None:
    _check(call_of("merge_", make(kernel_device)))


@inputs
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout(p: float, make: Any, kernel_device: torch.device) -> None:
    _check(call_of("dropout", _trainable(make(kernel_device)), dropout_p=p))


@pytest.mark.parametrize("make", [INPUTS["hybrid"], INPUTS["zero_tokens"]], ids=["some", "zero"])
@pytest.mark.parametrize(
    "operator", [name for name in OPERATORS if name.endswith(("forward", "backward"))]
)
def test_dropout_of_a_given_state(operator: str, make: Any, kernel_device: torch.device) -> None:
    operands = make(kernel_device)
    if operator.endswith("forward"):
        operands = _trainable(operands)
    _check(call_of(operator, operands, dropout_p=0.3))


@pytest.mark.parametrize("operator", ["linear", "add"])
def test_dropout_of_a_drawn_state(operator: str, kernel_device: torch.device) -> None:
    operands = _trainable(INPUTS["hybrid"](kernel_device))
    _check(call_of(operator, operands, dropout_p=0.3), RANDOM)
