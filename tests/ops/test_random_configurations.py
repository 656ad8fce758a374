"""Random grids, widths, dtypes and strides, by hypothesis, against the fp64 reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops_cases import (
    ADD,
    LINEAR,
    TOLERANCE,
    Grid,
    Operands,
    assert_close,
    expected_add,
    expected_linear,
    make_operands,
    run_add,
    run_linear,
)
from ops_layouts import LAYOUTS, contiguous, transposed

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

a_few = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    s = draw(st.integers(0, 9))
    r0 = draw(st.integers(0 if s else 1, 9))
    sizes = st.integers(1, 8)
    return Grid(
        k_in=draw(sizes) if s else 1,
        k_out=draw(sizes) if s else 1,
        n=draw(st.integers(1, 13)),
        m=draw(st.integers(1, 13)),
        s=s,
        r0=r0,
    )


@st.composite
def calls(draw: st.DrawFn, names: tuple[str, ...]) -> Operands:
    """Operands on the CPU; the values come from torch, seeded by hypothesis."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    leading = tuple(draw(st.lists(st.integers(1, 7), max_size=3)))
    dtype = draw(st.sampled_from(DTYPES))
    operands = make_operands(
        draw(grids()),
        leading,
        dtype=dtype,
        factor_dtype=draw(st.sampled_from([dtype, torch.float32])),
        bias=draw(st.booleans()),
        scaling=draw(st.sampled_from([0.125, 0.5, 1.0, -2.0])),
    )
    for name in (*names, "dy"):
        layout = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
        operands = operands.map(layout, [name])
    return operands


def _on(operands: Operands, device: torch.device) -> Operands:
    # Moving to a GPU keeps dense strides only, so the layouts are of the CPU's run.
    return operands.map(lambda t: t.to(device), [*LINEAR, "y", "dy"])


def _coarsest(operands: Operands) -> torch.dtype:
    present = operands.named(LINEAR).values()
    return max((value.dtype for value in present), key=lambda dtype: TOLERANCE[dtype])


def _assert_agreement(
    operands: Operands, run: Callable[..., Any], reference: Callable[..., Any]
) -> None:
    """Every result is within the tolerance, relative to what its terms add up to without signs.

    Hypothesis finds the sums that cancel: their error relative to the sum itself has no bound.
    """
    result, gradients = run(operands)
    expected, expected_gradients = reference(operands)
    unsigned = operands.map(torch.abs, [*LINEAR, "y", "dy"])
    magnitude, magnitudes = reference(replace(unsigned, scaling=abs(operands.scaling)))
    assert gradients.keys() == expected_gradients.keys()
    allowed = TOLERANCE[_coarsest(operands)]
    for name, (ours, exact, size) in {
        "result": (result, expected, magnitude),
        **{n: (g, expected_gradients[n], magnitudes[n]) for n, g in gradients.items()},
    }.items():
        assert ours.shape == exact.shape, f"{name}: {ours.shape} for {exact.shape}"
        error = torch.linalg.vector_norm(ours.detach().double() - exact.detach().double())
        scale = torch.linalg.vector_norm(size.detach().double())
        assert error <= allowed * scale, f"{name}: error {error:.2e}, terms of {scale:.2e}"


@a_few
@given(operands=calls(LINEAR))
def test_linear(operands: Operands, device: torch.device) -> None:
    _assert_agreement(_on(operands, device), run_linear, expected_linear)


@a_few
@given(operands=calls(ADD))
def test_add(operands: Operands, device: torch.device) -> None:
    _assert_agreement(_on(operands, device), run_add, expected_add)


@a_few
@given(grid=grids(), seed=st.integers(0, 2**31), transpose=st.booleans())
@pytest.mark.usefixtures("poisoned_memory")
def test_merge_adds_delta_weight(
    grid: Grid, seed: int, transpose: bool, kernel_device: torch.device
) -> None:
    torch.manual_seed(seed)
    operands = make_operands(grid, (1,), device=kernel_device)
    weight = (transposed if transpose else contiguous)(operands.weight)
    delta = torch.ops.gralora.delta_weight(*operands.factors(), scaling=0.75)
    torch.ops.gralora.merge_(weight, *operands.factors(), scaling=0.75)
    assert_close(weight, operands.weight + delta)
