"""`gralora::linear` and `gralora::add` on operands of any strides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ops_calls import call_of
from ops_cases import (
    ADD,
    GRIDS,
    LINEAR,
    Operands,
    assert_close,
    assert_gradients_close,
    expected_add,
    expected_linear,
    make_operands,
    run_add,
    run_linear,
)
from ops_layouts import LAYOUTS, Layout

pytestmark = pytest.mark.usefixtures("poisoned_memory")
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["fp64", "bf16"])


def _check_linear(operands: Operands, dtype: torch.dtype) -> None:
    expected, expected_gradients = expected_linear(operands)
    result, gradients = run_linear(operands)
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=dtype)


@dtypes
@layouts
@pytest.mark.parametrize("operand", [*LINEAR, "dy"])
def test_linear_takes_one_operand_of_any_layout(
    operand: str, layout: Layout, dtype: torch.dtype, device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid_rectangular"], dtype=dtype, device=device)
    _check_linear(operands.map(layout, [operand]), dtype)


@dtypes
@layouts
@pytest.mark.parametrize("grid", ["square", "hybrid", "aligned", "plain_pair_alone"])
def test_linear_takes_every_operand_of_a_layout(
    grid: str, layout: Layout, dtype: torch.dtype, device: torch.device
) -> None:
    operands = make_operands(GRIDS[grid], (2, 3), dtype=dtype, device=device)
    _check_linear(operands.map(layout, [*LINEAR, "dy"]), dtype)


@layouts
@pytest.mark.parametrize("operand", [*ADD, "dy"])
def test_add_takes_one_operand_of_any_layout(
    operand: str, layout: Layout, device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid_rectangular"], (2, 3), device=device)
    operands = operands.map(layout, [operand])
    expected, expected_gradients = expected_add(operands)
    result, gradients = run_add(operands)
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=torch.float64)


@pytest.mark.parametrize(
    "leading_axes", [(1, 0, 2, 3), (2, 1, 0, 3), (0, 2, 1, 3)], ids=["bat", "tab", "atb"]
)
@pytest.mark.parametrize("operand", ["x", "dy"])
def test_leading_axes_in_any_order_in_memory(
    operand: str, leading_axes: tuple[int, ...], device: torch.device
) -> None:
    operands = make_operands(GRIDS["wide"], (2, 3, 4), device=device)

    def reorder(values: torch.Tensor) -> torch.Tensor:
        # Each of the three orders is its own inverse.
        return values.permute(leading_axes).contiguous().permute(leading_axes)

    _check_linear(operands.map(reorder, [operand]), torch.float64)


@pytest.mark.parametrize(
    "shape", [(1, 1, -1), (2, 1, -1), (1, 3, -1)], ids=["both", "inner", "outer"]
)
@pytest.mark.parametrize("operand", ["x", "dy"])
def test_tokens_that_are_one_token_expanded(
    operand: str, shape: tuple[int, ...], device: torch.device
) -> None:
    operands = make_operands(GRIDS["hybrid"], (2, 3), device=device)

    def expand(values: torch.Tensor) -> torch.Tensor:
        return values[: shape[0], : shape[1]].contiguous().expand_as(values)

    _check_linear(operands.map(expand, [operand]), torch.float64)


@pytest.mark.parametrize("operand", ["x", "weight", "bias", "dy", "A", "B", "lora_A", "lora_B"])
def test_an_operand_that_is_one_number_expanded(operand: str, device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=device)
    _check_linear(
        operands.map(lambda t: t.reshape(-1)[0].clone().expand(t.shape), [operand]),
        torch.float64,
    )


def test_the_gradient_of_a_sum(device: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], (2, 3), device=device)
    ones = operands.map(torch.ones_like, ["dy"])
    _, expected = expected_linear(ones)
    leaves = operands.requiring_grad(LINEAR)
    leaves.linear().sum().backward()
    gradients = {name: leaf.grad for name, leaf in leaves.named(LINEAR).items()}
    assert_gradients_close(gradients, expected, dtype=torch.float64)


def test_overlapping_windows_as_tokens(device: torch.device) -> None:
    operands = make_operands(GRIDS["wide"], device=device)
    signal = torch.randn(3 * 6 + GRIDS["wide"].N, dtype=torch.float64, device=device)
    windows = signal.as_strided((7, GRIDS["wide"].N), (3, 1))
    _check_linear(operands.map(lambda _: windows, ["x"]), torch.float64)


@pytest.mark.parametrize("grid", ["wide", "hybrid"])
def test_factors_cut_from_one_buffer(grid: str, device: torch.device) -> None:
    operands = make_operands(GRIDS[grid], device=device)
    given = operands.named(["A", "B", "lora_A", "lora_B"])
    buffer = torch.cat([value.reshape(-1) for value in given.values()])
    pieces = buffer.split([value.numel() for value in given.values()])
    cut = {
        name: piece.view(value.shape)
        for (name, value), piece in zip(given.items(), pieces, strict=True)
    }
    names = iter(cut.values())
    _check_linear(operands.map(lambda _: next(names), cut), torch.float64)


def _with_poisoned_rows(latent: torch.Tensor) -> torch.Tensor:
    """The same values and strides, with NaN in the padding behind each row."""
    pitch = latent.stride(-2)
    store = latent.new_full((*latent.shape[:-1], pitch), torch.nan)
    view = store[..., : latent.shape[-1]]
    assert view.stride() == latent.stride()
    return view.copy_(latent)


@dtypes
@pytest.mark.parametrize("operator", ["linear_backward", "add_backward"])
def test_backward_does_not_read_the_padding_of_the_latents(
    operator: str, dtype: torch.dtype, device: torch.device
) -> None:
    call = call_of(operator, make_operands(GRIDS["hybrid"], dtype=dtype, device=device))
    *inputs, H, lora_H, rng_state = call.args
    poisoned = (_with_poisoned_rows(H), _with_poisoned_rows(lora_H))
    again = replace(call, args=(*inputs, *poisoned, rng_state))
    for clean, gradient in zip(call.outputs(), again.outputs(), strict=True):
        assert torch.equal(gradient, clean)


@pytest.mark.parametrize("operator", ["linear_backward", "add_backward"])
def test_backward_takes_dense_latents(operator: str, device: torch.device) -> None:
    call = call_of(operator, make_operands(GRIDS["hybrid"], device=device))
    *inputs, H, lora_H, rng_state = call.args
    again = replace(call, args=(*inputs, H.contiguous(), lora_H.contiguous(), rng_state))
    for clean, gradient in zip(call.outputs(), again.outputs(), strict=True):
        assert_close(gradient, clean)
