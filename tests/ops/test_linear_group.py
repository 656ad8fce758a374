"""gralora::linear_group: layers over one input, against each layer's reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops_cases import TOLERANCE
from ops_groups import (
    SCALING,
    SHAPES,
    Group,
    GroupShape,
    expected_group,
    expected_outputs,
    make_group,
    run_group,
)
from ops_paths import every_path, on_path
from torch import Tensor

shapes = pytest.mark.parametrize("name", SHAPES)
# x's dtype, and the factors'.
DTYPES = {
    "fp64": (torch.float64, torch.float64),
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "bf16_fp32_factors": (torch.bfloat16, torch.float32),
    "fp16_fp32_factors": (torch.float16, torch.float32),
}
dtypes = pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES.keys())


def call(group: Group, **changes: Any) -> list[Tensor]:
    values = {
        "x": group.x, "weights": group.weights, "biases": group.biases, "A": group.A, "B": group.B
    }  # fmt: skip
    result: list[Tensor] = torch.ops.gralora.linear_group(
        *{**values, **changes}.values(), scaling=SCALING
    )
    return result


def assert_all_close(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    for got, exact in zip(actual, expected, strict=True):
        assert got.shape == exact.shape
        error = (got.double() - exact).norm() / exact.norm().clamp_min(1e-30)
        assert error < 2 * TOLERANCE[dtype]


@dtypes
@shapes
def test_values_and_gradients(
    name: str, dtypes: tuple[torch.dtype, torch.dtype], device: torch.device
) -> None:
    dtype, factor_dtype = dtypes
    group = make_group(SHAPES[name], (3, 7), dtype=dtype, factor_dtype=factor_dtype, device=device)
    ys, gradients = run_group(group)
    expected, expected_gradients = expected_group(group)
    assert_all_close(ys, expected, dtype)
    assert_all_close(gradients, expected_gradients, dtype)
    for leaf, gradient in zip(group.leaves(), gradients, strict=True):
        assert gradient.dtype == leaf.dtype
        assert gradient.is_contiguous()


@pytest.mark.cuda_kernels
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("T", [1, 7, 65, 200, 700])
@pytest.mark.parametrize("factor_dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("name", ["qkv", "qkv_biased", "gate_up", "lora"])
@every_path
def test_every_path(
    path: Any, name: str, factor_dtype: torch.dtype, T: int, cuda: torch.device
) -> None:
    group = make_group(
        SHAPES[name], (T,), dtype=torch.bfloat16, factor_dtype=factor_dtype, device=cuda
    )
    ys, gradients = on_path(path, lambda: run_group(group))
    expected, expected_gradients = expected_group(group)
    assert_all_close(ys, expected, torch.bfloat16)
    assert_all_close(gradients, expected_gradients, torch.bfloat16)


@pytest.mark.cuda_kernels
def test_long_call_on_the_way(cuda: torch.device) -> None:
    """As long as calls whose latents are made among the product's tiles."""
    shape = GroupShape(4, 512, 16, ((4, 512), (4, 128), (4, 128)), (True, False, False))
    group = make_group(shape, (8200,), dtype=torch.bfloat16, device=cuda)
    ys, gradients = run_group(group)
    expected, expected_gradients = expected_group(group)
    assert_all_close(ys, expected, torch.bfloat16)
    assert_all_close(gradients, expected_gradients, torch.bfloat16)
    again, same = run_group(group)
    for first, second in zip([*ys, *gradients], [*again, *same], strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_outputs_that_are_not_used_take_no_part(used: tuple[int, ...]) -> None:
    group = make_group(SHAPES["qkv_biased"], (5,))
    ys = call(group)
    leaves = group.leaves()
    gradients = torch.autograd.grad(
        [ys[i] for i in used], leaves, [group.dy[i] for i in used], allow_unused=True
    )
    exact = group.to(torch.float64)
    outputs = expected_outputs(exact)
    expected = torch.autograd.grad(
        [outputs[i] for i in used], exact.leaves(), [group.dy[i] for i in used], allow_unused=True
    )
    for got, wanted in zip(gradients, expected, strict=True):
        assert (got is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("frozen", ["x", "A", "B"])
def test_leaves_without_gradients(frozen: str) -> None:
    group = make_group(SHAPES["qkv"], (5,))
    expected = dict(zip(map(id, group.leaves()), expected_group(group)[1], strict=True))
    tensors = [group.x] if frozen == "x" else getattr(group, frozen)[:2]
    for tensor in tensors:
        tensor.requires_grad_(False)
    torch.autograd.backward(call(group), group.dy)
    for leaf in group.leaves():
        assert (leaf.grad is not None) == leaf.requires_grad
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, expected[id(leaf)])


@shapes
def test_gradcheck(name: str) -> None:
    group = make_group(SHAPES[name], (3,))
    count = len(group.A)

    def run(x: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        return tuple(call(group, x=x, A=factors[:count], B=factors[count:]))

    assert torch.autograd.gradcheck(run, group.leaves())


@pytest.mark.parametrize("lead", [(), (0,), (2, 0, 3), (1,)], ids=str)
def test_any_leading_sizes(lead: tuple[int, ...]) -> None:
    group = make_group(SHAPES["qkv"], lead)
    ys, gradients = run_group(group)
    expected, expected_gradients = expected_group(group)
    for got, wanted in zip([*ys, *gradients], [*expected, *expected_gradients], strict=True):
        torch.testing.assert_close(got, wanted)


def test_operands_of_any_strides() -> None:
    group = make_group(SHAPES["qkv_biased"], (6,))
    expected, expected_gradients = expected_group(group)

    def strided(tensor: Tensor) -> Tensor:
        wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), torch.nan, dtype=tensor.dtype)
        wide[..., ::2] = tensor.detach()
        return wide[..., ::2].requires_grad_(tensor.requires_grad)

    other = Group(
        strided(group.x),
        [weight.t().contiguous().t() for weight in group.weights],
        group.biases,
        [strided(factor) for factor in group.A],
        [strided(factor) for factor in group.B],
        [strided(gradient) for gradient in group.dy],
    )
    ys, gradients = run_group(other)
    for got, wanted in zip([*ys, *gradients], [*expected, *expected_gradients], strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_nan_in_one_layer_stays_there() -> None:
    group = make_group(SHAPES["qkv"], (4,))
    with torch.no_grad():
        group.A[1][0, 0, 0] = torch.nan
    ys = call(group)
    assert ys[1].isnan().any()
    assert ys[0].isfinite().all()
    assert ys[2].isfinite().all()


def test_equal_calls_give_equal_bits() -> None:
    group = make_group(SHAPES["qkv"], (300,), dtype=torch.bfloat16, factor_dtype=torch.float32)
    first = run_group(group)
    second = run_group(group)
    for one, other in zip([*first[0], *first[1]], [*second[0], *second[1]], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["qkv", "odd"])
def test_opcheck(name: str) -> None:
    group = make_group(SHAPES[name], (2, 3), dtype=torch.bfloat16, factor_dtype=torch.float32)
    arguments = (group.x, group.weights, group.biases, group.A, group.B)
    outcome = torch.library.opcheck(
        torch.ops.gralora.linear_group.default, arguments, {"scaling": SCALING}
    )
    assert set(outcome.values()) == {"SUCCESS"}


def test_compiles_into_one_graph() -> None:
    group = make_group(SHAPES["qkv_biased"], (5,))
    torch.testing.assert_close(torch.compile(call, fullgraph=True)(group), call(group))


def test_autocast_casts_inputs_and_weights_alone() -> None:
    group = make_group(SHAPES["qkv_biased"], (5,), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ys = call(group)
    assert {y.dtype for y in ys} == {torch.bfloat16}
    gradients = torch.autograd.grad(ys, group.leaves(), [dy.bfloat16() for dy in group.dy])
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert_all_close(gradients, expected_group(group)[1], torch.bfloat16)


def test_second_derivatives_are_refused() -> None:
    group = make_group(SHAPES["gate_up"], (3,))
    ys = call(group)
    (dx,) = torch.autograd.grad(ys, [group.x], group.dy, create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward"):
        dx.sum().backward()


@pytest.mark.parametrize("name", ["x", "weights", "biases", "A", "B"])
def test_tangents_are_refused(name: str) -> None:
    group = make_group(SHAPES["lora"], (3,))

    def dual(tensor: Tensor) -> Tensor:
        return torch.autograd.forward_ad.make_dual(tensor, torch.ones_like(tensor))

    with torch.autograd.forward_ad.dual_level():
        value = getattr(group, name)
        changed = dual(value) if isinstance(value, Tensor) else [value[0], dual(value[1])]
        with pytest.raises(NotImplementedError, match="forward-mode"):
            call(group, **{name: changed})


WRONG: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {}


def refused(name: str, error: type[Exception], text: str, **changes: Any) -> None:
    WRONG[name] = (error, text, changes)


refused("no_layer", ValueError, "1 to 3 layers", weights=[], biases=[], A=[], B=[])
refused("biases", ValueError, "a bias or None", biases=[None])
refused("factors", ValueError, "A and B", A=[torch.ones(2, 16, 16)])
refused(
    "grids", RuntimeError, "one k_in and one s",
    A=[torch.ones(2, 16, 16, dtype=torch.float64), torch.ones(1, 32, 16, dtype=torch.float64)],
    B=[torch.ones(2, 16, 40, dtype=torch.float64), torch.ones(2, 8, 40, dtype=torch.float64)],
)  # fmt: skip
refused("factor_dtypes", TypeError, "one dtype", B=[torch.ones(2, 16, 40)] * 2)
refused("x", RuntimeError, "last size of x", x=torch.ones(3, 31, dtype=torch.float64))
refused(
    "weight", RuntimeError, "weight must be", weights=[torch.ones(80, 31, dtype=torch.float64)] * 2
)
refused(
    "trained", ValueError, "must be frozen",
    weights=[torch.ones(80, 32, dtype=torch.float64, requires_grad=True)] * 2,
)  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name: str) -> None:
    error, text, changes = WRONG[name]
    with pytest.raises(error, match=text):
        call(make_group(SHAPES["gate_up"], (3,)), **changes)
