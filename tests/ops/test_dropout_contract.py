"""The mask inside `linear` and `add` is that of `gralora::dropout`, on every path and device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops_cases import FACTORS, Grid, Operands, assert_close, make_operands
from ops_layouts import groups_apart, shifted, transposed
from ops_paths import EVERY_PATH, PATHS, on_path
from ops_philox import dropout_scale, keep_mask
from torch import Tensor

STATE = (-12345, 2**40 + 3)
operators = pytest.mark.parametrize("operator", ["linear", "add"])
probabilities = pytest.mark.parametrize("p", [2**-16, 0.1, 0.5, 0.9, 1.0])
every_path = pytest.mark.parametrize(
    ("where", "path"),
    [("cpu", None), *(("cuda", path) for path in EVERY_PATH)],
    ids=["cpu", "chosen", *PATHS],
)
# Tokens and block width: whole groups of eight a row, and rows that start within a group.
SIZES = {"64_wide": (67, 64), "72_wide": (130, 72), "odd": (33, 37)}


@pytest.fixture
def place(where: str, request: pytest.FixtureRequest) -> torch.device:
    """The device of a parameter; skips where it is CUDA and there is none."""
    return request.getfixturevalue("cuda") if where == "cuda" else torch.device("cpu")


def _window(
    T: int, width: int, device: torch.device, dtype: torch.dtype = torch.bfloat16, r0: int = 0
) -> Operands:
    """Two blocks with identities for factors: the adapter's term is the dropped-out x."""
    grid = Grid(k_in=2, k_out=2, n=width, m=width, s=width, r0=r0)
    operands = make_operands(grid, (T,), dtype=dtype, device=device, scaling=1.0)
    eye = torch.eye(width, dtype=dtype, device=device)
    none = torch.zeros_like(eye)
    # A [2, n, (i, q)] and B [2, (j, q), m]: input block j reaches output block j alone.
    A = torch.stack([torch.cat([eye, none], 1), torch.cat([none, eye], 1)])
    B = torch.stack([torch.cat([eye, none], 0), torch.cat([none, eye], 0)])
    operands = operands.map(lambda _: A, ["A"]).map(lambda _: B, ["B"])
    operands = operands.map(torch.zeros_like, ["weight", "bias", "y"])
    return operands.map(torch.ones_like, ["x", "dy"])


def _forward(operator: str, operands: Operands, p: float, state: Tensor) -> Tensor:
    base = (operands.x, operands.weight, operands.bias)
    inputs = base if operator == "linear" else (operands.y, operands.x)
    forward = getattr(torch.ops.gralora, f"{operator}_forward")
    result: Tensor = forward(
        *inputs, *operands.factors(), state, scaling=operands.scaling, dropout_p=p
    )[0]
    return result


def _state(device: torch.device) -> Tensor:
    return torch.tensor(STATE, device=device)


def _can_run(path: Any, width: int) -> bool:
    return path not in ("sm80", "sm90") or width % 8 == 0


@probabilities
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@operators
@every_path
def test_forward_input_gradient_and_operator_have_the_mask_of_the_generator(
    where: str, path: Any, operator: str, size: tuple[int, int], p: float, place: torch.device
) -> None:
    T, width = size
    if not _can_run(path, width):
        pytest.skip("the kernels take widths that are multiples of 8")
    keep = keep_mask(torch.tensor(STATE), T, 2 * width, p).to(place)
    leaves = _window(T, width, place).requiring_grad(["x"])
    exact = (keep * dropout_scale(p)).bfloat16()

    def run() -> tuple[Tensor, Tensor]:
        result = _forward(operator, leaves, p, _state(place))
        return result.detach(), torch.autograd.grad(result, [leaves.x], leaves.dy)[0]

    result, dx = on_path(path, run)
    dropped = torch.ops.gralora.dropout(leaves.x.detach(), _state(place), p=p)
    assert torch.equal(dropped, exact)
    assert torch.equal(result, exact)
    assert torch.equal(dx, exact)


@operators
@every_path
def test_the_gradient_of_each_factor_sees_that_mask(
    where: str, path: Any, operator: str, place: torch.device
) -> None:
    grid = Grid(k_in=2, k_out=3, n=72, m=64, s=8, r0=16)
    operands = make_operands(grid, (130,), dtype=torch.bfloat16, device=place)
    # One token alone has an output gradient, so that a mask of another token shows.
    operands = operands.map(torch.zeros_like, ["dy"])
    operands.dy[101] = 1
    state = _state(place)
    leaves = operands.requiring_grad(FACTORS)
    given = list(leaves.named(FACTORS).values())
    actual = on_path(
        path,
        lambda: torch.autograd.grad(_forward(operator, leaves, 0.5, state), given, leaves.dy),
    )
    dropped = operands.map(lambda x: torch.ops.gralora.dropout(x, state, p=0.5), ["x"])
    leaves = dropped.map(Tensor.double, ["x", "weight", "bias", "y", "dy", *FACTORS])
    leaves = leaves.requiring_grad(FACTORS)
    given = list(leaves.named(FACTORS).values())
    result = getattr(leaves, operator)()
    expected = torch.autograd.grad(result, given, leaves.dy)
    for name, gradient, exact in zip(FACTORS, actual, expected, strict=True):
        assert_close(gradient, exact, name=f"d{name}")


LAYOUTS = {"groups_apart": groups_apart, "shifted_by_8": shifted(8), "transposed": transposed}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@every_path
def test_the_mask_belongs_to_places_in_x_and_not_in_memory(
    where: str, path: Any, layout: Any, place: torch.device
) -> None:
    operands = _window(67, 64, place)
    expected = on_path(path, lambda: _forward("linear", operands, 0.5, _state(place)))
    elsewhere = operands.map(layout, ["x"])
    result = on_path(path, lambda: _forward("linear", elsewhere, 0.5, _state(place)))
    assert torch.equal(result, expected)


@operators
@every_path
def test_both_parts_of_a_hybrid_share_it(
    where: str, path: Any, operator: str, place: torch.device
) -> None:
    operands = _window(67, 64, place, r0=128)
    eye = torch.eye(128, dtype=torch.bfloat16, device=place)
    opposite = operands.map(lambda _: eye.clone(), ["lora_A"]).map(lambda _: -eye, ["lora_B"])
    leaves = opposite.requiring_grad(["x"])

    def run() -> tuple[Tensor, Tensor]:
        result = _forward(operator, leaves, 0.5, _state(place))
        return result.detach(), torch.autograd.grad(result, [leaves.x], leaves.dy)[0]

    result, dx = on_path(path, run)
    assert not result.any()
    assert not dx.any()


@pytest.mark.parametrize("path", EVERY_PATH, ids=["chosen", *PATHS])
@pytest.mark.parametrize("T", [1, 67, 1500])
def test_a_state_gives_the_result_of_the_cpu_on_cuda(T: int, path: Any, cuda: torch.device) -> None:
    operands = _window(T, 72, torch.device("cpu"))
    on_cpu = _forward("linear", operands, 0.3, _state(torch.device("cpu")))
    names = ["x", "weight", "bias", "dy", *FACTORS]
    moved = operands.map(lambda t: t.to(cuda), names)
    on_cuda = on_path(path, lambda: _forward("linear", moved, 0.3, _state(cuda)))
    assert torch.equal(on_cuda.cpu(), on_cpu)
