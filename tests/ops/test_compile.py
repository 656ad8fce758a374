"""`torch.compile(fullgraph=True, dynamic=True)`: one compilation serves every number of tokens."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
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
from torch import Tensor

import gralora.functional

# None of these is a size of the parameters, which the compiler would take for the same size; 0
# and 1 are sizes of their own to it.
TOKENS = (19, 31, 2, 129, 7)


@pytest.fixture(autouse=True)
def one_compilation() -> Iterator[None]:
    """Nothing compiled before, and an error for a second compilation of the same code."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def _need_backend(backend: str) -> None:
    if backend == "inductor" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("inductor needs a C++ compiler")


def _linear(operands: Operands, dropout_p: float = 0.0) -> Tensor:
    return gralora.functional.gralora_linear(
        operands.x,
        operands.weight,
        operands.bias,
        operands.A,
        operands.B,
        scaling=operands.scaling,
        lora_A=operands.lora_A,
        lora_B=operands.lora_B,
        dropout_p=dropout_p,
    )


def _add(operands: Operands, dropout_p: float = 0.0) -> Tensor:
    return gralora.functional.gralora_add(
        operands.y,
        operands.x,
        operands.A,
        operands.B,
        scaling=operands.scaling,
        lora_A=operands.lora_A,
        lora_B=operands.lora_B,
        dropout_p=dropout_p,
    )


def _over_tokens(
    parameters: Operands, call: Callable[[Operands], Tensor], backend: str
) -> Iterator[tuple[Operands, Tensor]]:
    """Compiles `call` once; yields operands of each token count and the compiled result."""
    _need_backend(backend)

    def function(x: Tensor, y: Tensor) -> Tensor:
        replaced = iter((x, y))
        return call(parameters.map(lambda _: next(replaced), ["x", "y"]))

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    N, M = parameters.weight.shape[1], parameters.weight.shape[0]
    options = {"dtype": parameters.x.dtype, "device": parameters.x.device}
    for tokens in TOKENS:
        values = iter(torch.randn(tokens, width, **options) for width in (N, M, M))
        operands = parameters.map(lambda _, v=values: next(v), ["x", "y", "dy"])
        operands = operands.requiring_grad(["x", "y"])
        yield operands, compiled(operands.x, operands.y)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("grid", ["wide", "hybrid", "plain_pair_alone"])
def test_linear_forward_and_backward(grid: str, backend: str, device: torch.device) -> None:
    parameters = make_operands(GRIDS[grid], device=device).requiring_grad(LINEAR)
    for operands, result in _over_tokens(parameters, _linear, backend):
        expected, expected_gradients = expected_linear(operands)
        given = operands.named(LINEAR)
        gradients = torch.autograd.grad(result, list(given.values()), operands.dy)
        assert_close(result, expected)
        assert_gradients_close(
            dict(zip(given, gradients, strict=True)), expected_gradients, dtype=torch.float64
        )


@pytest.mark.parametrize("grid", ["wide", "hybrid"])
def test_add_forward_and_backward(grid: str, device: torch.device) -> None:
    parameters = make_operands(GRIDS[grid], device=device).requiring_grad(ADD)
    for operands, result in _over_tokens(parameters, _add, "aot_eager"):
        expected, expected_gradients = expected_add(operands)
        given = operands.named(ADD)
        gradients = torch.autograd.grad(result, list(given.values()), operands.dy)
        assert_close(result, expected)
        assert_gradients_close(
            dict(zip(given, gradients, strict=True)), expected_gradients, dtype=torch.float64
        )


def test_linear_through_inductor(device: torch.device) -> None:
    parameters = make_operands(GRIDS["hybrid"], dtype=torch.float32, device=device)
    parameters = parameters.requiring_grad(LINEAR)

    def between_other_operations(operands: Operands) -> Tensor:
        return torch.relu(_linear(operands) * 2.0)

    for operands, result in _over_tokens(parameters, between_other_operations, "inductor"):
        given = operands.named(LINEAR)
        gradients = torch.autograd.grad(result, list(given.values()), operands.dy)
        eager = between_other_operations(operands)
        eager_gradients = torch.autograd.grad(eager, list(given.values()), operands.dy)
        assert_close(result, eager)
        assert_gradients_close(
            dict(zip(given, gradients, strict=True)),
            dict(zip(given, eager_gradients, strict=True)),
            dtype=torch.float32,
        )


def test_frozen_base_with_fp32_factors_in_bf16(device: torch.device) -> None:
    parameters = make_operands(
        GRIDS["hybrid"], dtype=torch.bfloat16, factor_dtype=torch.float32, device=device
    ).requiring_grad(FACTORS)
    for operands, result in _over_tokens(parameters, _linear, "aot_eager"):
        _, expected = expected_linear(operands)
        given = operands.named(FACTORS)
        gradients = torch.autograd.grad(result, list(given.values()), operands.dy)
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        assert_gradients_close(
            dict(zip(given, gradients, strict=True)),
            {name: expected[name] for name in given},
            dtype=torch.bfloat16,
        )


def test_two_leading_dimensions_both_dynamic(device: torch.device) -> None:
    parameters = make_operands(GRIDS["hybrid"], (13, 17), device=device).requiring_grad(FACTORS)

    def function(x: Tensor) -> Tensor:
        return _linear(parameters.map(lambda _: x, ["x"]))

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for leading in [(4, 19), (7, 31), (2, 9)]:
        x = torch.randn(*leading, GRIDS["hybrid"].N, dtype=torch.float64, device=device)
        result = compiled(x)
        result.sum().backward()
        assert_close(result, function(x))


def test_autocast_inside_the_compiled_function(device: torch.device) -> None:
    parameters = make_operands(GRIDS["hybrid"], dtype=torch.float32, device=device)
    parameters = parameters.requiring_grad(LINEAR)

    def under_autocast(operands: Operands) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return _linear(operands)

    for operands, result in _over_tokens(parameters, under_autocast, "aot_eager"):
        expected, expected_gradients = expected_linear(operands)
        given = operands.named(LINEAR)
        gradients = torch.autograd.grad(result, list(given.values()), operands.dy.to(result.dtype))
        assert result.dtype == torch.bfloat16
        assert_close(result, expected)
        assert_gradients_close(
            dict(zip(given, gradients, strict=True)), expected_gradients, dtype=torch.bfloat16
        )


# An adapter that is the identity shows its mask: delta(x) = dropout(x), and dx = dropout(dy).
def _identity(width: int, device: torch.device) -> Operands:
    operands = make_operands(Grid(n=width, m=width, s=width), device=device, scaling=1.0)
    eye = torch.eye(width, dtype=torch.float64, device=device)
    operands = operands.map(lambda _: eye[None].clone(), ["A", "B"])
    return operands.map(torch.zeros_like, ["weight", "bias", "y"])


@pytest.mark.parametrize("call", [_linear, _add], ids=["linear", "add"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_dropout_has_one_mask_in_forward_and_backward(
    backend: str, call: Callable[..., Tensor], device: torch.device
) -> None:
    parameters = _identity(64, device)

    def update_alone(operands: Operands) -> Tensor:
        return call(operands.map(torch.zeros_like, ["y"]), 0.5)

    for operands, result in _over_tokens(parameters, update_alone, backend):
        (dx,) = torch.autograd.grad(result, [operands.x], torch.ones_like(result))
        assert torch.equal(result != 0, dx != 0)
        assert 0.3 < (dx != 0).double().mean() < 0.7


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_dropout_draws_a_fresh_mask_at_each_call(backend: str, device: torch.device) -> None:
    _need_backend(backend)
    parameters = _identity(64, device)
    compiled = torch.compile(
        lambda x: _linear(parameters.map(lambda _: x, ["x"]), 0.5),
        fullgraph=True,
        dynamic=True,
        backend=backend,
    )
    x = torch.ones(19, 64, dtype=torch.float64, device=device)
    assert not torch.equal(compiled(x), compiled(x))


def test_dropout_in_aot_eager_draws_the_mask_of_eager(device: torch.device) -> None:
    parameters = _identity(64, device)

    def function(x: Tensor) -> Tensor:
        return _linear(parameters.map(lambda _: x, ["x"]), 0.5)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    x = torch.ones(19, 64, dtype=torch.float64, device=device)
    torch.manual_seed(3)
    eager = function(x)
    torch.manual_seed(3)
    assert torch.equal(compiled(x), eager)


def test_delta_weight(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device).requiring_grad(FACTORS)

    def function(scale: Tensor) -> Tensor:
        return scale * gralora.functional.delta_weight(
            operands.A,
            operands.B,
            scaling=0.75,
            lora_A=operands.lora_A,
            lora_B=operands.lora_B,
        )

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    two = torch.tensor(2.0, dtype=torch.float64, device=device)
    assert_close(compiled(two), function(two))


def test_merge_inside_a_compiled_function(kernel_device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=kernel_device)

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def merged(weight: Tensor) -> Tensor:
        torch.ops.gralora.merge_(weight, *operands.factors(), scaling=0.75)
        return weight * 1.0

    weight = operands.weight.clone()
    result = merged(weight)
    torch.ops.gralora.merge_(operands.weight, *operands.factors(), scaling=0.75)
    assert torch.equal(result, operands.weight)
    assert torch.equal(weight, operands.weight)
