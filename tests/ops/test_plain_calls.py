"""Eager calls skip torch.ops; whoever watches torch.ops must see them all the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from ops_cases import GRIDS, Operands, assert_close, expected_add, expected_linear, make_operands
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import gralora.functional
from gralora import _C

OPERATORS = {
    "linear": torch.ops.gralora.linear.default,
    "add": torch.ops.gralora.add.default,
}
EXPECTED = {"linear": expected_linear, "add": expected_add}


def _call(operator: str, operands: Operands, scaling: float | None = None) -> Tensor:
    scaling = operands.scaling if scaling is None else scaling
    A, B, lora_A, lora_B = operands.factors()
    if operator == "add":
        return gralora.functional.gralora_add(
            operands.y, operands.x, A, B, scaling=scaling, lora_A=lora_A, lora_B=lora_B
        )
    return gralora.functional.gralora_linear(
        operands.x, operands.weight, operands.bias, A, B, scaling=scaling, lora_A=lora_A,
        lora_B=lora_B,
    )  # fmt: skip


class _Noted(Tensor):
    """Notes the functions that are called on it."""

    seen: list[object] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class _FunctionLog(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class _DispatchLog(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


operators = pytest.mark.parametrize("operator", OPERATORS)


@operators
@pytest.mark.parametrize("argument", ["x", "A"])
def test_tensor_subclasses_see_the_operator(
    operator: str, argument: str, device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid"], (3,), device=device)
    _Noted.seen.clear()
    noted = operands.map(lambda t: t.as_subclass(_Noted), (argument,))
    _call(operator, noted)
    assert OPERATORS[operator] in _Noted.seen


@operators
def test_function_modes_see_the_operator(operator: str, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], (3,), device=device)
    with _FunctionLog() as log:
        _call(operator, operands)
    assert OPERATORS[operator] in log.seen


@operators
def test_dispatch_modes_see_the_operators_of_the_forward_pass(
    operator: str, device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid"], (3,), device=device)
    with _DispatchLog() as log:
        _call(operator, operands)
    assert f"gralora::{operator}_forward" in log.seen


@operators
def test_jit_trace_records_the_operator(operator: str, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], (3,), device=device)

    def function(x: Tensor) -> Tensor:
        return _call(operator, operands.map(lambda _: x, ("x",)))

    traced = torch.jit.trace(function, operands.x)
    assert f"gralora::{operator}" in str(traced.graph)


def test_an_integer_scaling_is_a_number_too(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], (3,), device=device)
    assert torch.equal(_call("linear", operands, 2), _call("linear", operands, 2.0))


def test_arguments_of_the_wrong_kind_are_refused_as_by_torch_ops(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], (3,), device=device)
    with pytest.raises(RuntimeError, match="Expected a value of type 'Tensor' for argument 'x'"):
        _C.linear("x", operands.weight, None, operands.A, operands.B, None, None, 1.0, 0.0, True)


@pytest.mark.parametrize(("function", "count"), [(_C.linear, 10), (_C.add, 9)], ids=OPERATORS)
def test_a_wrong_number_of_arguments_is_refused(function: Callable[..., Any], count: int) -> None:
    with pytest.raises(TypeError, match=f"needs {count} positional arguments, got 1"):
        function(None)


@operators
def test_plain_calls_give_what_the_formula_says(operator: str, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], (3,), device=device)
    expected, _ = EXPECTED[operator](operands)
    assert_close(_call(operator, operands), expected)
