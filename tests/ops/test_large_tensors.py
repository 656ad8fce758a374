"""Tensors of more than 2^31 elements, through every kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from ops_cases import (
    Grid,
    Operands,
    assert_close,
    assert_gradients_close,
    expected_add,
    expected_linear,
    make_operands,
    run_add,
)
from ops_memory import gpu_memory
from ops_paths import on_path
from ops_philox import dropout_scale, kept
from torch import Tensor

LIMIT = 2**31
kernels = pytest.mark.parametrize("path", [None, "sm80", "sm90"], ids=["chosen", "sm80", "sm90"])


@pytest.fixture
def big(cuda: torch.device) -> Iterator[torch.device]:
    """The CUDA device with 24 GiB free, for one process at a time."""
    with gpu_memory(24):
        yield cuda


@pytest.mark.cuda_kernels
@pytest.mark.parametrize("transpose", [False, True], ids=["row_major", "column_major"])
def test_merge_of_more_than_2_31_elements(transpose: bool, big: torch.device) -> None:
    grid = Grid(k_in=2, k_out=2, n=16384, m=32770, s=4)
    shape = (grid.N, grid.M) if transpose else (grid.M, grid.N)
    assert grid.M * grid.N > 2**31
    weight = torch.ones(shape, dtype=torch.bfloat16, device=big)
    weight = weight.T if transpose else weight
    A = torch.randn(2, grid.n, 8, device=big)
    B = torch.randn(2, 8, grid.m, device=big)
    torch.ops.gralora.merge_(weight, A, B, None, None, scaling=0.5)
    for rows in (slice(0, 3), slice(grid.m - 2, grid.m + 2), slice(grid.M - 3, grid.M)):
        exact = torch.empty(rows.stop - rows.start, grid.N, dtype=torch.float64, device=big)
        for row, o in enumerate(range(rows.start, rows.stop)):
            i, inside = divmod(o, grid.m)
            for j in range(2):
                a = A[j, :, i * 4 : (i + 1) * 4].double()
                b = B[i, j * 4 : (j + 1) * 4, inside].double()
                exact[row, j * grid.n : (j + 1) * grid.n] = 1 + 0.5 * (a @ b)
        assert_close(weight[rows], exact, dtype=torch.bfloat16)


@pytest.mark.cuda_kernels
def test_dropout_of_more_than_2_31_elements(big: torch.device) -> None:
    T, N = 2**16 + 3, 2**15
    x = torch.ones(T, N, dtype=torch.bfloat16, device=big)
    rng_state = torch.tensor([77, -5])
    result = torch.ops.gralora.dropout(x, rng_state.to(big), p=0.3)
    for row in (0, 2**16, T - 1):
        mask = kept(rng_state, row * N, N, 0.3)
        expected = (mask * dropout_scale(0.3)).bfloat16()
        assert torch.equal(result[row].cpu(), expected)


def test_linear_of_more_than_2_31_elements(big: torch.device) -> None:
    grid = Grid(k_in=2, k_out=2, n=64, m=16384, s=4)
    operands = make_operands(grid, (1,), dtype=torch.bfloat16, device=big)
    tokens = 2**16 + 3
    x = torch.randn(tokens, grid.N, device=big).bfloat16()
    result = replace(operands, x=x).linear()
    assert result.numel() > 2**31
    for rows in (slice(0, 2), slice(tokens - 2, tokens)):
        few = replace(operands, x=x[rows], dy=result[rows])
        assert_close(result[rows], expected_linear(few)[0])


def _far_apart(values: Tensor, store: Tensor, column: int) -> Tensor:
    """The same rows as windows of `store`, whose last one starts beyond the limit."""
    view = store[: len(values), column : column + values.shape[1]]
    assert (len(values) - 1) * store.stride(0) > LIMIT
    return view.copy_(values)


@pytest.mark.cuda_kernels
@pytest.mark.parametrize("factor_dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@kernels
def test_rows_that_lie_more_than_2_31_elements_apart(
    path: Any, factor_dtype: torch.dtype, big: torch.device
) -> None:
    grid = Grid(k_in=2, k_out=4, n=288, m=48, s=8, r0=8)
    operands = make_operands(
        grid, (2100,), dtype=torch.bfloat16, factor_dtype=factor_dtype, device=big
    )
    store = torch.empty(2100, 2**20, dtype=torch.bfloat16, device=big)
    operands = replace(
        operands,
        x=_far_apart(operands.x, store, 0),
        dy=_far_apart(operands.dy, store, 1024),
    )
    expected, expected_gradients = expected_add(operands)
    result, gradients = on_path(path, lambda: run_add(operands))
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=torch.bfloat16)


def _ends(tensor: Tensor) -> list[slice]:
    """The first tokens, those around the limit, and the last."""
    tokens, width = tensor.shape
    middle = LIMIT // width
    return [slice(0, 2), slice(middle - 1, middle + 2), slice(tokens - 2, tokens)]


@pytest.mark.cuda_kernels
@kernels
def test_expansion_into_more_than_2_31_elements(path: Any, big: torch.device) -> None:
    grid = Grid(k_in=2, k_out=2, n=64, m=2**13, s=8, r0=8)
    tokens = 2**17 + 67
    few = make_operands(grid, (1,), dtype=torch.bfloat16, device=big)
    x = torch.randn(tokens, grid.N, device=big).bfloat16()
    y = torch.full((tokens, grid.M), 0.5, dtype=torch.bfloat16, device=big)
    result = on_path(path, lambda: replace(few, x=x, y=y).add())
    assert result.numel() > LIMIT
    for rows in _ends(result):
        part = replace(few, x=x[rows], y=y[rows], dy=y[rows])
        assert_close(result[rows], expected_add(part)[0])


@pytest.mark.cuda_kernels
@kernels
def test_input_gradient_of_more_than_2_31_elements(path: Any, big: torch.device) -> None:
    grid = Grid(k_in=2, k_out=2, n=2**13, m=64, s=8, r0=8)
    tokens = 2**17 + 67
    few = make_operands(grid, (1,), dtype=torch.bfloat16, device=big)
    dy = torch.randn(tokens, grid.M, device=big).bfloat16()
    backward = torch.ops.gralora.add_backward
    numbers = {"scaling": few.scaling, "dropout_p": 0.0}
    mask = [True, False, False, False, False]
    saved = (None, None, None)
    dx = on_path(
        path, lambda: backward(dy, None, *few.factors(), *saved, **numbers, output_mask=mask)[0]
    )
    assert dx.numel() > LIMIT
    for rows in _ends(dx):
        x = torch.zeros(rows.stop - rows.start, grid.N, dtype=torch.bfloat16, device=big)
        part = replace(few, x=x, y=dy[rows], dy=dy[rows])
        assert_close(dx[rows], expected_add(part)[1]["x"])


def _with_large_latents(device: torch.device) -> Operands:
    """H [16, T, 128] and G [2, T, 1024] of more than 2^31 elements each."""
    grid = Grid(k_in=2, k_out=16, n=8, m=8, s=64)
    operands = make_operands(grid, (1,), dtype=torch.bfloat16, device=device)
    tokens = 2**20 + 5
    assert grid.k_in * grid.k_out * grid.s * tokens > LIMIT

    def draw(width: int) -> Tensor:
        return torch.randn(tokens, width, device=device).bfloat16()

    return replace(operands, x=draw(grid.N), y=draw(grid.M), dy=draw(grid.M))


@pytest.mark.cuda_kernels
@kernels
def test_latents_of_more_than_2_31_elements(path: Any, big: torch.device) -> None:
    operands = _with_large_latents(big)
    result, gradients = on_path(path, lambda: run_add(operands))
    last = slice(len(operands.x) - 3, None)
    few = operands.map(lambda t: t[last], ["x", "y", "dy"])
    expected, expected_gradients = expected_add(few)
    assert_close(result[last], expected)
    assert_close(gradients["x"][last], expected_gradients["x"])
    # The last blocks, whose latents lie beyond the limit: j = 1 of two, i = 15 of sixteen.
    assert operands.A is not None
    assert operands.B is not None
    x, dy = operands.x[:, 8:].double(), operands.dy[:, 120:].double()
    G = operands.scaling * dy @ operands.B[15, 64:].double().T
    H = operands.scaling * x @ operands.A[1, :, 960:].double()
    assert_close(gradients["A"][1, :, 960:], x.T @ G)
    assert_close(gradients["B"][15, 64:], H.T @ dy)
