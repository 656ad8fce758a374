"""What autograd sees: gradcheck, what is saved, what is asked for, what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops_cases import ADD, FACTORS, GRIDS, LINEAR, Grid, Operands, make_operands
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

SMALL = {
    "grid": Grid(k_in=2, k_out=3, n=2, m=1, s=2),
    "hybrid": Grid(k_in=2, k_out=1, n=2, m=3, s=1, r0=2),
    "plain_pair": Grid(n=3, m=2, r0=2),
}
small_grids = pytest.mark.parametrize("grid", SMALL.values(), ids=SMALL.keys())


def _gradcheck(
    operands: Operands, names: tuple[str, ...], call: Callable[[Operands], Tensor]
) -> bool:
    leaves = operands.requiring_grad(names)
    given = leaves.named(names)

    def function(*values: Tensor) -> Tensor:
        replaced = iter(values)
        return call(leaves.map(lambda _: next(replaced), given))

    return torch.autograd.gradcheck(function, list(given.values()), fast_mode=False)


@small_grids
@pytest.mark.parametrize("tokens", [1, 3])
def test_gradcheck_of_linear(grid: Grid, tokens: int, device: torch.device) -> None:
    operands = make_operands(grid, (tokens,), device=device)
    assert _gradcheck(operands, LINEAR, Operands.linear)


@small_grids
def test_gradcheck_of_add(grid: Grid, device: torch.device) -> None:
    operands = make_operands(grid, (2, 2), device=device)
    assert _gradcheck(operands, ADD, Operands.add)


@pytest.mark.parametrize("operator", ["linear", "add"])
def test_gradcheck_with_dropout(operator: str, device: torch.device) -> None:
    operands = make_operands(SMALL["hybrid"], (5,), device=device)

    def call(leaves: Operands) -> Tensor:
        torch.manual_seed(7)  # The same mask at each of gradcheck's points.
        return getattr(leaves, operator)(dropout_p=0.4)

    assert _gradcheck(operands, LINEAR if operator == "linear" else ADD, call)


@small_grids
def test_gradcheck_of_delta_weight(grid: Grid, device: torch.device) -> None:
    operands = make_operands(grid, device=device)
    assert _gradcheck(
        operands, FACTORS, lambda o: torch.ops.gralora.delta_weight(*o.factors(), scaling=0.75)
    )


@small_grids
def test_second_derivatives_of_delta_weight(grid: Grid, device: torch.device) -> None:
    leaves = make_operands(grid, device=device).requiring_grad(FACTORS)
    given = leaves.named(FACTORS)

    def function(*values: Tensor) -> Tensor:
        replaced = iter(values)
        changed = leaves.map(lambda _: next(replaced), given)
        return torch.ops.gralora.delta_weight(*changed.factors(), scaling=0.75)

    assert torch.autograd.gradgradcheck(function, list(given.values()))


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_derivatives_of_dropout(check: Callable[..., bool], kernel_device: torch.device) -> None:
    rng_state = torch.tensor([11, 22], device=kernel_device)
    x = torch.randn(3, 7, dtype=torch.float64, device=kernel_device, requires_grad=True)
    assert check(lambda x: torch.ops.gralora.dropout(x, rng_state, p=0.4), (x,))


@pytest.mark.parametrize("operator", ["linear", "add"])
@pytest.mark.parametrize("wanted", ["x", "A", "B", "lora_A", "lora_B"])
def test_double_backward_is_refused(operator: str, wanted: str, device: torch.device) -> None:
    leaves = make_operands(GRIDS["hybrid"], device=device).requiring_grad([wanted])
    leaf = getattr(leaves, wanted)

    def second_derivative() -> None:
        loss = getattr(leaves, operator)().square().sum()
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        torch.autograd.grad(gradient.sum(), leaf)

    with pytest.raises(RuntimeError, match=rf"gralora::{operator}.*(double backward|twice)"):
        second_derivative()


@pytest.mark.parametrize("operator", ["linear", "add"])
def test_functional_gradients_are_refused(operator: str, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)

    def loss(A: Tensor) -> Tensor:
        return getattr(operands.map(lambda _: A, ["A"]), operator)().sum()

    with pytest.raises(RuntimeError, match=r"(?i)gralora.*(torch\.func|functorch)"):
        torch.func.grad(loss)(operands.A)


@pytest.mark.parametrize("operator", ["linear", "add"])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["frozen", "trainable"])
def test_vmap_is_refused(operator: str, requires_grad: bool, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], (3,), device=device)
    if requires_grad:
        operands = operands.requiring_grad(FACTORS)

    def call(x: Tensor, y: Tensor) -> Tensor:
        replaced = iter((x, y))
        return getattr(operands.map(lambda _: next(replaced), ["x", "y"]), operator)()

    with pytest.raises(RuntimeError, match=r"(?i)gralora.*(torch\.func|functorch|vmap)"):
        torch.func.vmap(call)(operands.x, operands.y)


def _directional_derivative(operands: Operands, name: str, call: Callable[..., Tensor]) -> Tensor:
    """The forward-mode derivative of `call` in the direction of ones of one operand."""
    with forward_ad.dual_level():
        primal = getattr(operands, name)
        dual = forward_ad.make_dual(primal, torch.ones_like(primal))
        tangent = forward_ad.unpack_dual(call(operands.map(lambda _: dual, [name]))).tangent
    assert tangent is not None, "the derivative was lost"
    return tangent


@pytest.mark.parametrize("operator", ["linear", "add"])
@pytest.mark.parametrize("name", ["x", "A", "lora_B"])
def test_forward_mode_derivatives_are_refused(
    operator: str, name: str, device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    with pytest.raises(RuntimeError, match=r"(?i)jvp|forward"):
        _directional_derivative(operands, name, getattr(Operands, operator))


@pytest.mark.parametrize("name", FACTORS)
def test_forward_mode_derivative_of_delta_weight(name: str, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)

    def delta(changed: Operands) -> Tensor:
        return torch.ops.gralora.delta_weight(*changed.factors(), scaling=0.75)

    # delta_weight is linear in each factor by itself.
    ones = operands.map(torch.ones_like, [name])
    others = operands.map(torch.zeros_like, [name])
    tangent = _directional_derivative(operands, name, delta)
    torch.testing.assert_close(tangent, delta(ones) - delta(others))


@pytest.mark.parametrize("name", ["A", "lora_B"])
def test_forward_mode_derivatives_of_merge_are_refused(
    name: str, kernel_device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid"], device=kernel_device)

    def merged(changed: Operands) -> Tensor:
        weight = operands.weight.clone()
        torch.ops.gralora.merge_(weight, *changed.factors(), scaling=0.75)
        return weight

    with pytest.raises(RuntimeError, match=r"gralora::merge_.*not differentiable"):
        _directional_derivative(operands, name, merged)


def test_functional_gradients_of_delta_weight(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)

    def loss(A: Tensor) -> Tensor:
        changed = operands.map(lambda _: A, ["A"])
        return torch.ops.gralora.delta_weight(*changed.factors(), scaling=0.75).square().sum()

    leaves = operands.requiring_grad(["A"])
    assert leaves.A is not None
    (expected,) = torch.autograd.grad(loss(leaves.A), [leaves.A])
    torch.testing.assert_close(torch.func.grad(loss)(operands.A), expected)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap], ids=["grad", "vmap"])
def test_function_transforms_of_dropout_are_refused(
    transform: Callable[..., Any], kernel_device: torch.device
) -> None:
    rng_state = torch.tensor([11, 22], device=kernel_device)
    x = torch.randn(3, 7, dtype=torch.float64, device=kernel_device)
    with pytest.raises(RuntimeError, match=r"gralora::dropout.*torch\.func"):
        transform(lambda x: torch.ops.gralora.dropout(x, rng_state, p=0.4).sum())(x)


class Spy(TorchDispatchMode):
    """Records the output_mask of each backward operator that runs."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.operator = f"gralora.{operator}_backward"
        self.masks: list[list[bool]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if str(func).startswith(self.operator):
            self.masks.append(list((kwargs or {})["output_mask"]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wanted", [("x",), ("A", "B"), ("bias", "lora_B"), LINEAR], ids="-".join)
def test_backward_of_linear_computes_only_what_requires_a_gradient(
    wanted: tuple[str, ...],
) -> None:
    leaves = make_operands(GRIDS["hybrid"]).requiring_grad(wanted)
    result = leaves.linear()
    with Spy("linear") as spy:
        result.sum().backward()
    assert spy.masks == [[name in wanted for name in LINEAR]]


@pytest.mark.parametrize("wanted", [("x",), ("A", "B"), ("x", *FACTORS)], ids="-".join)
def test_backward_of_add_computes_only_what_requires_a_gradient(wanted: tuple[str, ...]) -> None:
    leaves = make_operands(GRIDS["hybrid"]).requiring_grad(wanted)
    result = leaves.add()
    with Spy("add") as spy:
        result.sum().backward()
    assert spy.masks == [[name in wanted for name in ("x", *FACTORS)]]


def _forward_backward_arguments(operator: str) -> tuple[Operands, tuple[Any, ...], dict[str, Any]]:
    operands = make_operands(GRIDS["hybrid"])
    numbers = {"scaling": operands.scaling, "dropout_p": 0.0}
    if operator == "linear":
        _, H, lora_H = torch.ops.gralora.linear_forward(
            operands.x, operands.weight, operands.bias, *operands.factors(), None, **numbers
        )
        inputs: tuple[Any, ...] = (operands.dy, operands.x, operands.weight)
    else:
        _, H, lora_H = torch.ops.gralora.add_forward(
            operands.y, operands.x, *operands.factors(), None, **numbers
        )
        inputs = (operands.dy, operands.x)
    return operands, (*inputs, *operands.factors(), H, lora_H, None), numbers


@pytest.mark.parametrize(("operator", "outputs"), [("linear", 7), ("add", 5)])
def test_each_output_mask_gives_what_it_asks_for(operator: str, outputs: int) -> None:
    _, arguments, numbers = _forward_backward_arguments(operator)
    backward = getattr(torch.ops.gralora, f"{operator}_backward")
    everything = backward(*arguments, **numbers, output_mask=[True] * outputs)
    for mask in itertools.product([False, True], repeat=outputs):
        some = backward(*arguments, **numbers, output_mask=list(mask))
        for asked, gradient, full in zip(mask, some, everything, strict=True):
            if asked:
                torch.testing.assert_close(gradient, full, rtol=1e-13, atol=1e-13)
            else:
                assert gradient is None


def _saved(result: Callable[[], Tensor]) -> list[Tensor]:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result()
    return saved


@pytest.mark.parametrize("operator", ["linear", "add"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.5], ids=["no_dropout", "dropout"])
def test_saved_for_backward_are_x_h_and_the_parameters(operator: str, dropout_p: float) -> None:
    grid = GRIDS["hybrid"]
    T = 100
    operands = make_operands(grid, (T,), dtype=torch.bfloat16, factor_dtype=torch.float32)
    leaves = operands.requiring_grad(["x", *FACTORS])
    saved = _saved(lambda: getattr(leaves, operator)(dropout_p=dropout_p))
    known = {value.data_ptr() for value in leaves.named(LINEAR).values()}
    fresh = [tensor for tensor in saved if tensor.data_ptr() not in known]
    r_pitch, r0_pitch = 8, 8  # k_in * s = 6 and r0 = 5, rounded up.
    largest = 2 * T * (grid.k_out * r_pitch + r0_pitch) + 16
    assert sum(tensor.untyped_storage().nbytes() for tensor in fresh) <= largest


@pytest.mark.parametrize("operator", ["linear", "add"])
def test_no_gradient_mode_saves_nothing(operator: str) -> None:
    leaves = make_operands(GRIDS["hybrid"]).requiring_grad(FACTORS)
    with torch.no_grad():
        saved = _saved(getattr(leaves, operator))
    assert saved == []


def test_a_second_backward_through_a_freed_graph_says_so() -> None:
    leaves = make_operands(GRIDS["hybrid"]).requiring_grad(FACTORS)
    result = leaves.linear().sum()
    result.backward()
    with pytest.raises(RuntimeError, match="second time"):
        result.backward()


def test_a_factor_changed_between_forward_and_backward_is_noticed() -> None:
    leaves = make_operands(GRIDS["hybrid"]).requiring_grad(FACTORS)
    result = leaves.linear().sum()
    with torch.no_grad():
        assert leaves.B is not None
        leaves.B.mul_(2)
    with pytest.raises(RuntimeError, match="inplace operation"):
        result.backward()


@pytest.mark.parametrize("operator", ["linear", "add"])
def test_inference_mode_gives_the_same_values(operator: str, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    expected = getattr(operands, operator)()
    with torch.inference_mode():
        assert torch.equal(getattr(operands, operator)(), expected)
