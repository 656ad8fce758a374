"""Every error names the operator, the argument and what was received."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from ops_cases import GRIDS, Grid, Operands, make_operands
from torch import Tensor

# N = 12, M = 8: A [2, 6, 12], B [4, 6, 2], lora_A [5, 12], lora_B [8, 5], x [7, 12].
GRID = Grid(k_in=2, k_out=4, n=6, m=2, s=3, r0=5)
ERRORS = (RuntimeError, ValueError, TypeError)


def empty(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


@dataclass(frozen=True)
class Fault:
    """A change of one call's operands, and what the message must contain."""

    change: dict[str, Any]
    fragments: tuple[str, ...]

    def apply(self, operands: Operands) -> Operands:
        return replace(operands, **self.change)


def _message(call: Callable[[], object]) -> str:
    with pytest.raises(ERRORS) as caught:
        call()
    # Torch appends a C++ stack trace after the first lines of some errors.
    return str(caught.value).split("\nException raised from")[0]


def _assert_says(message: str, *fragments: str) -> None:
    for fragment in fragments:
        assert re.search(rf"(?<!\w){re.escape(fragment)}(?!\w)", message), (
            f"{fragment!r} is not in {message!r}"
        )


# What is wrong with the factors is the same error in every operator.
FACTOR_FAULTS = {
    "A_without_B": Fault({"B": None}, ("A", "B")),
    "B_without_A": Fault({"A": None}, ("A", "B")),
    "lora_A_without_lora_B": Fault({"lora_B": None}, ("lora_A", "lora_B")),
    "lora_B_without_lora_A": Fault({"lora_A": None}, ("lora_A", "lora_B")),
    "no_factors": Fault(
        {"A": None, "B": None, "lora_A": None, "lora_B": None}, ("A", "B", "lora_A", "lora_B")
    ),
    "A_of_two_dimensions": Fault({"A": empty(12, 12)}, ("A", "[12, 12]")),
    "A_of_four_dimensions": Fault({"A": empty(1, 2, 6, 12)}, ("A", "[1, 2, 6, 12]")),
    "B_of_two_dimensions": Fault({"B": empty(6, 8)}, ("B", "[6, 8]")),
    "lora_A_of_one_dimension": Fault({"lora_A": empty(12)}, ("lora_A", "[12]")),
    "lora_B_of_three_dimensions": Fault({"lora_B": empty(1, 8, 5)}, ("lora_B", "[1, 8, 5]")),
    "A_that_k_out_does_not_divide": Fault(
        {"A": empty(2, 6, 13)}, ("A", "B", "[2, 6, 13]", "[4, 6, 2]")
    ),
    "B_that_k_in_does_not_divide": Fault(
        {"B": empty(4, 7, 2)}, ("A", "B", "[2, 6, 12]", "[4, 7, 2]")
    ),
    "two_sub_ranks": Fault({"A": empty(2, 6, 16)}, ("A", "B", "[2, 6, 16]", "[4, 6, 2]")),
    "sub_rank_zero": Fault({"A": empty(2, 6, 0), "B": empty(4, 0, 2)}, ("A", "B", "[2, 6, 0]")),
    "no_output_blocks": Fault({"A": empty(2, 6, 0), "B": empty(0, 6, 2)}, ("B", "[0, 6, 2]")),
    "no_input_blocks": Fault({"A": empty(0, 6, 12), "B": empty(4, 0, 2)}, ("A", "[0, 6, 12]")),
    "two_plain_ranks": Fault({"lora_A": empty(4, 12)}, ("lora_A", "lora_B", "[4, 12]", "[8, 5]")),
    "plain_rank_zero": Fault(
        {"lora_A": empty(0, 12), "lora_B": empty(8, 0)}, ("lora_A", "[0, 12]")
    ),
    "integer_A": Fault({"A": empty(2, 6, 12, dtype=torch.int64)}, ("A", "Long")),
    "integer_B": Fault({"B": empty(4, 6, 2, dtype=torch.int32)}, ("B", "Int")),
    "complex_lora_A": Fault(
        {"lora_A": empty(5, 12, dtype=torch.complex64)}, ("lora_A", "ComplexFloat")
    ),
    "eight_bit_lora_B": Fault(
        {"lora_B": empty(8, 5, dtype=torch.float8_e4m3fn)}, ("lora_B", "Float8_e4m3fn")
    ),
    "A_on_another_device": Fault({"A": empty(2, 6, 12, device="meta")}, ("A", "meta", "cpu")),
    "B_on_another_device": Fault({"B": empty(4, 6, 2, device="meta")}, ("B", "meta", "cpu")),
    "lora_A_on_another_device": Fault(
        {"lora_A": empty(5, 12, device="meta")}, ("lora_A", "meta", "cpu")
    ),
    "lora_B_on_another_device": Fault(
        {"lora_B": empty(8, 5, device="meta")}, ("lora_B", "meta", "cpu")
    ),
    "lora_A_of_another_width": Fault({"lora_A": empty(5, 11)}, ("lora_A", "[5, 11]", "12")),
    "lora_B_of_another_width": Fault({"lora_B": empty(9, 5)}, ("lora_B", "[9, 5]", "8")),
}

LINEAR_FAULTS = {
    "x_of_another_width": Fault({"x": empty(7, 11)}, ("x", "[7, 11]", "12")),
    "x_without_dimensions": Fault({"x": empty()}, ("x",)),
    "integer_x": Fault({"x": empty(7, 12, dtype=torch.int64)}, ("x", "Long")),
    "complex_x": Fault({"x": empty(7, 12, dtype=torch.complex128)}, ("x", "ComplexDouble")),
    "boolean_x": Fault({"x": empty(7, 12, dtype=torch.bool)}, ("x", "Bool")),
    "x_on_another_device": Fault({"x": empty(7, 12, device="meta")}, ("x", "meta", "cpu")),
    "weight_of_one_dimension": Fault({"weight": empty(12)}, ("weight", "[12]")),
    "weight_transposed": Fault({"weight": empty(12, 8)}, ("weight", "[12, 8]", "8", "12")),
    "weight_of_another_height": Fault({"weight": empty(9, 12)}, ("weight", "[9, 12]", "8")),
    "weight_of_another_width": Fault({"weight": empty(8, 13)}, ("weight", "[8, 13]", "12")),
    "weight_of_another_dtype": Fault(
        {"weight": empty(8, 12, dtype=torch.float32)}, ("x", "weight", "Double", "Float")
    ),
    "weight_on_another_device": Fault(
        {"weight": empty(8, 12, device="meta")}, ("weight", "meta", "cpu")
    ),
    "bias_of_another_length": Fault({"bias": empty(12)}, ("bias", "[12]", "8")),
    "bias_of_two_dimensions": Fault({"bias": empty(1, 8)}, ("bias", "[1, 8]")),
    "bias_of_another_dtype": Fault(
        {"bias": empty(8, dtype=torch.float32)}, ("bias", "Double", "Float")
    ),
    "bias_on_another_device": Fault({"bias": empty(8, device="meta")}, ("bias", "meta", "cpu")),
    "grid_that_does_not_fit_the_weight": Fault(
        {"A": empty(2, 5, 12), "lora_A": None, "lora_B": None}, ("10",)
    ),
}

ADD_FAULTS = {
    "x_of_another_width": Fault({"x": empty(7, 11)}, ("x", "[7, 11]", "12")),
    "integer_x": Fault({"x": empty(7, 12, dtype=torch.int64)}, ("x", "Long")),
    "x_on_another_device": Fault({"x": empty(7, 12, device="meta")}, ("x", "meta", "cpu")),
    "y_of_another_width": Fault({"y": empty(7, 9)}, ("y", "[7, 9]", "8")),
    "y_of_other_tokens": Fault({"y": empty(6, 8)}, ("y", "x", "[6, 8]", "[7, 12]")),
    "y_of_more_dimensions": Fault({"y": empty(7, 1, 8)}, ("y", "x", "[7, 1, 8]", "[7, 12]")),
    "integer_y": Fault({"y": empty(7, 8, dtype=torch.int64)}, ("y", "Long")),
    "y_on_another_device": Fault({"y": empty(7, 8, device="meta")}, ("y", "meta", "cpu")),
}

MERGE_FAULTS = {
    "weight_of_one_dimension": Fault({"weight": empty(12)}, ("weight", "[12]")),
    "weight_transposed": Fault({"weight": empty(12, 8)}, ("weight", "[12, 8]", "8", "12")),
    "integer_weight": Fault({"weight": empty(8, 12, dtype=torch.int8)}, ("weight", "Char")),
    "weight_on_another_device": Fault(
        {"weight": empty(8, 12, device="meta")}, ("weight", "meta", "cpu")
    ),
}


def _faults(*tables: dict[str, Fault]) -> pytest.MarkDecorator:
    pairs = [pair for table in tables for pair in table.items()]
    return pytest.mark.parametrize(
        "fault", [fault for _, fault in pairs], ids=[name for name, _ in pairs]
    )


@_faults(FACTOR_FAULTS, LINEAR_FAULTS)
def test_linear(fault: Fault) -> None:
    operands = fault.apply(make_operands(GRID))
    _assert_says(_message(operands.linear), "gralora::linear", *fault.fragments)


@_faults(FACTOR_FAULTS, ADD_FAULTS)
def test_add(fault: Fault) -> None:
    operands = fault.apply(make_operands(GRID))
    _assert_says(_message(operands.add), "gralora::add", *fault.fragments)


@_faults(FACTOR_FAULTS)
def test_delta_weight(fault: Fault) -> None:
    factors = fault.apply(make_operands(GRID)).factors()
    message = _message(lambda: torch.ops.gralora.delta_weight(*factors, scaling=1.0))
    _assert_says(message, "gralora::delta_weight", *fault.fragments)


@_faults(FACTOR_FAULTS, MERGE_FAULTS)
def test_merge(fault: Fault) -> None:
    operands = fault.apply(make_operands(GRID))
    before = operands.weight.clone()
    message = _message(
        lambda: torch.ops.gralora.merge_(operands.weight, *operands.factors(), scaling=1.0)
    )
    _assert_says(message, "gralora::merge_", *fault.fragments)
    assert before.device.type == "meta" or torch.equal(operands.weight, before)


@_faults(FACTOR_FAULTS, LINEAR_FAULTS)
def test_linear_under_autograd(fault: Fault) -> None:
    operands = fault.apply(make_operands(GRID))

    def trained(value: Tensor) -> Tensor:
        return value.requires_grad_() if value.is_floating_point() else value

    operands = operands.map(trained, ["A", "B", "lora_A", "lora_B"])
    _assert_says(_message(operands.linear), "gralora::linear", *fault.fragments)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("operator", ["linear", "add"])
def test_dropout_p_outside_of_zero_to_one(operator: str, training: bool, p: float) -> None:
    operands = make_operands(GRID)
    message = _message(lambda: getattr(operands, operator)(dropout_p=p, training=training))
    _assert_says(message, f"gralora::{operator}", "dropout")
    assert str(p) in message


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_probability_of_dropout_outside_of_zero_to_one(p: float) -> None:
    state = torch.tensor([1, 2])
    message = _message(lambda: torch.ops.gralora.dropout(empty(3, 4), state, p=p))
    _assert_says(message, "gralora::dropout")
    assert str(p) in message


@pytest.mark.parametrize(
    ("state", "fragments"),
    [
        pytest.param(empty(3, dtype=torch.int64), ("[3]",), id="three_numbers"),
        pytest.param(empty(1, 2, dtype=torch.int64), ("[1, 2]",), id="two_dimensions"),
        pytest.param(empty(2, dtype=torch.int32), ("Int",), id="int32"),
        pytest.param(empty(2), ("Double",), id="fp64"),
        pytest.param(
            empty(2, dtype=torch.int64, device="meta"), ("meta", "cpu"), id="another_device"
        ),
    ],
)
def test_rng_state_of_dropout(state: Tensor, fragments: tuple[str, ...]) -> None:
    message = _message(lambda: torch.ops.gralora.dropout(empty(3, 4), state, p=0.5))
    _assert_says(message, "gralora::dropout", "rng_state", *fragments)


@pytest.mark.parametrize("operator", ["linear_forward", "add_forward"])
def test_rng_state_of_the_forward_operators(operator: str) -> None:
    operands = make_operands(GRID)
    inputs = (
        (operands.x, operands.weight, operands.bias)
        if operator == "linear_forward"
        else (operands.y, operands.x)
    )
    state = empty(3, dtype=torch.int64)
    message = _message(
        lambda: getattr(torch.ops.gralora, operator)(
            *inputs, *operands.factors(), state, scaling=1.0, dropout_p=0.5
        )
    )
    _assert_says(message, f"gralora::{operator.removesuffix('_forward')}", "rng_state", "[3]")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool], ids=str)
def test_x_of_dropout(dtype: torch.dtype) -> None:
    state = torch.tensor([1, 2])
    message = _message(lambda: torch.ops.gralora.dropout(empty(3, 4, dtype=dtype), state, p=0.5))
    _assert_says(message, "gralora::dropout", "x")


@pytest.mark.parametrize(
    ("shape", "fragment"),
    [((7, 9), "[7, 9]"), ((6, 8), "[6, 8]")],
    ids=["another_width", "other_tokens"],
)
def test_dy_of_the_backward_operator(shape: tuple[int, ...], fragment: str) -> None:
    operands = make_operands(GRID)
    _, H, lora_H = torch.ops.gralora.linear_forward(
        operands.x,
        operands.weight,
        operands.bias,
        *operands.factors(),
        None,
        scaling=1.0,
        dropout_p=0.0,
    )
    message = _message(
        lambda: torch.ops.gralora.linear_backward(
            empty(*shape),
            operands.x,
            operands.weight,
            *operands.factors(),
            H,
            lora_H,
            None,
            scaling=1.0,
            dropout_p=0.0,
            output_mask=[True] * 7,
        )
    )
    _assert_says(message, "gralora::linear_backward", fragment)


@pytest.mark.parametrize(
    ("name", "fragments"),
    [("lora_A", ("x", "[7, 9]", "8")), ("lora_B", ("lora_A", "lora_B", "[6, 9]", "[14, 5]"))],
)
def test_the_plain_pair_alone_must_fit_too(name: str, fragments: tuple[str, ...]) -> None:
    operands = make_operands(GRIDS["plain_pair_alone"])
    message = _message(operands.map(lambda value: value[:, :-1], [name]).linear)
    _assert_says(message, "gralora::linear", *fragments)


def test_a_message_says_what_is_accepted() -> None:
    operands = make_operands(GRID)
    message = _message(replace(operands, x=operands.x.long()).linear)
    _assert_says(message, "float64", "float32", "bfloat16", "float16")


def test_operators_work_after_an_error() -> None:
    operands = make_operands(GRID)
    before = operands.linear()
    _message(replace(operands, bias=empty(3)).linear)
    assert torch.equal(operands.linear(), before)
