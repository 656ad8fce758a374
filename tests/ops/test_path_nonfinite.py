"""Inf and NaN on every path: they come out where the reference has them, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops_cases import (
    ADD,
    FACTORS,
    LINEAR,
    TOLERANCE,
    Grid,
    Operands,
    expected_add,
    expected_linear,
    make_operands,
    run_add,
    run_linear,
)
from ops_paths import every_path, on_path
from ops_philox import keep_mask
from torch import Tensor

OPERATORS = {"linear": (run_linear, expected_linear), "add": (run_add, expected_add)}
operators = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
values = pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=["inf", "nan"])
DTYPES = [torch.bfloat16, torch.float16, torch.float32]

# The grid alone, where a block must not disturb its neighbour, and with the plain part.
GRIDS = {
    "grid": Grid(k_in=4, k_out=2, n=48, m=72, s=8),
    "hybrid": Grid(k_in=2, k_out=3, n=64, m=48, s=8, r0=16),
}
T = 70


def _row(tensor: Tensor, value: float) -> None:
    tensor[37] = value


def _element(tensor: Tensor, value: float) -> None:
    tensor.view(-1)[tensor.numel() // 2 + 5] = value


def _last_element(tensor: Tensor, value: float) -> None:
    tensor.view(-1)[-1] = value


PLACES: dict[str, tuple[str, Callable[[Tensor, float], None]]] = {
    "row_of_x": ("x", _row),
    "element_of_x": ("x", _element),
    "row_of_dy": ("dy", _row),
    "element_of_dy": ("dy", _element),
    **{f"element_of_{name}": (name, _element) for name in FACTORS},
    **{f"last_of_{name}": (name, _last_element) for name in ("x", "dy", *FACTORS)},
}
places = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())


def _assert_same_places(actual: Tensor, expected: Tensor, name: str) -> None:
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite), name
    # What is finite is also right: nothing was clamped, zeroed or taken from elsewhere.
    difference = torch.linalg.vector_norm(actual[finite].double() - expected[finite])
    norm = torch.linalg.vector_norm(expected[finite])
    assert difference <= TOLERANCE[actual.dtype] * norm, name


def _operands(grid: Grid, dtype: torch.dtype, device: torch.device) -> Operands:
    return make_operands(grid, (T,), dtype=dtype, device=device)


@values
@places
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@operators
@every_path
def test_result_and_gradients(
    path: Any,
    operator: Any,
    dtype: torch.dtype,
    grid: Grid,
    place: tuple[str, Callable[[Tensor, float], None]],
    value: float,
    cuda: torch.device,
) -> None:
    run, expect = operator
    operands = _operands(grid, dtype, cuda)
    name, put = place
    if getattr(operands, name) is None:
        pytest.skip("a grid without a plain pair")
    put(getattr(operands, name), value)
    expected, expected_gradients = expect(operands)
    result, gradients = on_path(path, lambda: run(operands))
    _assert_same_places(result, expected, "result")
    for leaf, gradient in gradients.items():
        _assert_same_places(gradient, expected_gradients[leaf], f"d{leaf}")


@values
@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp16", "fp32"])
@every_path
def test_what_dropout_drops_is_not_seen(
    path: Any, dtype: torch.dtype, value: float, cuda: torch.device
) -> None:
    if path in ("sm80", "sm90") and dtype == torch.float32:
        pytest.skip("the kernels take 16-bit operands")
    state = torch.tensor([12345, -678], device=cuda)
    operands = _operands(GRIDS["hybrid"], dtype, cuda)
    dropped = ~keep_mask(state.cpu(), T, GRIDS["hybrid"].N, 0.5).to(cuda)
    # The second half of the tokens has no finite number among what is dropped.
    dropped[: T // 2] = False
    clean = operands.map(torch.clone, ["x"])
    operands.x[dropped] = value

    def run(call: Operands) -> list[Tensor]:
        leaves = call.requiring_grad(FACTORS)
        numbers = {"scaling": call.scaling, "dropout_p": 0.5}
        forward = torch.ops.gralora.add_forward
        result = forward(leaves.y, leaves.x, *leaves.factors(), state, **numbers)[0]
        given = list(leaves.named(FACTORS).values())
        return [result.detach(), *torch.autograd.grad(result, given, leaves.dy)]

    for actual, expected in zip(
        on_path(path, lambda: run(operands)), on_path(path, lambda: run(clean)), strict=True
    ):
        assert torch.equal(actual, expected)


@values
@operators
@every_path
def test_a_token_leaves_the_other_tokens_alone(
    path: Any, operator: Any, value: float, cuda: torch.device
) -> None:
    run, _ = operator
    operands = _operands(GRIDS["hybrid"], torch.bfloat16, cuda)
    clean, clean_gradients = on_path(path, lambda: run(operands))
    disturbed = operands.map(torch.clone, ["x", "dy"])
    disturbed.x[37] = value
    disturbed.dy[37] = value
    result, gradients = on_path(path, lambda: run(disturbed))
    others = torch.arange(T, device=cuda) != 37
    assert torch.equal(result[others], clean[others])
    assert torch.equal(gradients["x"][others], clean_gradients["x"][others])


def test_every_differentiable_operand_is_disturbed_somewhere() -> None:
    disturbed = {name for name, _ in PLACES.values()}
    assert disturbed == {"x", "dy", *FACTORS} <= {*LINEAR, *ADD, "dy"}
