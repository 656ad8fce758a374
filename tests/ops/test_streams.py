"""Streams and devices: work is queued where the caller is, and memory is not reused too early."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from ops_cases import (
    FACTORS,
    GRIDS,
    Grid,
    Operands,
    assert_close,
    assert_gradients_close,
    expected_linear,
    make_operands,
    run_linear,
)
from ops_graphs import step_of
from ops_paths import GRIDS as KERNEL_GRIDS
from ops_paths import every_path, on_path
from torch import Tensor

TRAINED = ("x", *FACTORS)


@pytest.mark.cuda_kernels
def test_work_is_queued_on_the_current_stream(cuda: torch.device) -> None:
    grid = Grid(k_in=2, k_out=2, n=512, m=512, s=8)
    operands = make_operands(grid, (64,), dtype=torch.float32, device=cuda)
    expected = operands.map(Tensor.clone, ["weight"])
    torch.ops.gralora.merge_(expected.weight, *expected.factors(), scaling=1.0)
    expected_result = expected.linear()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # Work on another stream would overtake this pause and see the weight before it is set.
        late = torch.zeros_like(operands.weight)
        torch.cuda._sleep(50_000_000)
        late.copy_(operands.weight)
        torch.ops.gralora.merge_(late, *operands.factors(), scaling=1.0)
        result = replace(operands, weight=late).linear()
    stream.synchronize()
    assert torch.equal(late, expected.weight)
    assert torch.equal(result, expected_result)


@pytest.mark.cuda_kernels
@pytest.mark.parametrize("T", [3, 700])
@every_path
def test_every_launch_of_a_step_is_on_the_current_stream(
    path: Any, T: int, cuda: torch.device
) -> None:
    operands = make_operands(
        KERNEL_GRIDS["hybrid"],
        (T,),
        dtype=torch.bfloat16,
        factor_dtype=torch.float32,
        device=cuda,
    )
    expected = on_path(path, lambda: _gradients(operands))
    late = operands.map(lambda t: torch.full_like(t, torch.nan), (*TRAINED, "dy"))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # A launch on another stream would overtake this pause and see NaN.
        torch.cuda._sleep(50_000_000)
        for name, value in late.named((*TRAINED, "dy")).items():
            value.copy_(getattr(operands, name))
        results = on_path(path, lambda: _gradients(late))
    stream.synchronize()
    for actual, exact in zip(results, expected, strict=True):
        assert torch.equal(actual, exact)


def _gradients(operands: Operands, **options: object) -> list[Tensor]:
    return step_of(operands.requiring_grad(TRAINED), TRAINED, **options)


def test_two_streams_at_once(cuda: torch.device) -> None:
    grid = Grid(k_in=2, k_out=2, n=256, m=256, s=8, r0=8)
    pair = [
        make_operands(grid, (512,), dtype=torch.bfloat16, factor_dtype=torch.float32, device=cuda)
        for _ in range(2)
    ]
    expected = [run_linear(operands) for operands in pair]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for _ in range(20):
        results = []
        for operands, stream in zip(pair, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(run_linear(operands))
        torch.cuda.synchronize()
        for (result, gradients), (alone, gradients_alone) in zip(results, expected, strict=True):
            assert torch.equal(result, alone)
            assert all(torch.equal(gradients[name], gradients_alone[name]) for name in gradients)


@pytest.mark.cuda_kernels
@every_path
def test_two_streams_whose_memory_is_reused_at_once(path: Any, cuda: torch.device) -> None:
    pair = [
        make_operands(
            KERNEL_GRIDS["hybrid"],
            (tokens,),
            dtype=torch.bfloat16,
            factor_dtype=torch.float32,
            device=cuda,
        )
        for tokens in (2500, 40)
    ]
    expected = [on_path(path, lambda o=operands: _gradients(o)) for operands in pair]
    wrong = [torch.zeros((), dtype=torch.int64, device=cuda) for _ in pair]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for _ in range(30):
        for operands, alone, count, stream in zip(pair, expected, wrong, streams, strict=True):
            with torch.cuda.stream(stream):
                # Nothing waits: results are dropped, and their memory, with that of the operator's
                # temporaries, is filled with NaN and given to the next call while kernels run.
                results = on_path(path, lambda o=operands: _gradients(o))
                for actual, exact in zip(results, alone, strict=True):
                    count += (actual != exact).sum()
                sizes = [result.nbytes for result in results]
                del results, actual
                for size in sizes:
                    torch.full((size,), 0xFF, dtype=torch.uint8, device=cuda)
    torch.cuda.synchronize()
    assert [int(count) for count in wrong] == [0, 0]


@pytest.mark.cuda_kernels
def test_tensors_of_a_device_that_is_not_the_current_one(cuda: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    other = torch.device("cuda", 1)
    with torch.cuda.device(0):
        operands = make_operands(GRIDS["hybrid"], device=other)
        expected, expected_gradients = expected_linear(operands)
        result, gradients = run_linear(operands)
        torch.ops.gralora.merge_(operands.weight, *operands.factors(), scaling=0.75)
        dropped = torch.ops.gralora.dropout(operands.x, torch.tensor([1, 2], device=other), p=0.5)
        assert torch.cuda.current_device() == 0
    assert result.device == dropped.device == other
    assert_close(result, expected)
    assert_gradients_close(gradients, expected_gradients, dtype=torch.float64)


@pytest.mark.cuda_kernels
@every_path
def test_the_kernels_on_a_second_device(path: Any) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"{torch.cuda.device_count()} GPUs are visible, two are needed")
    for index in (0, 1):
        device = torch.device("cuda", index)
        operands = make_operands(
            KERNEL_GRIDS["hybrid"], (130,), dtype=torch.bfloat16, device=device
        )
        expected, expected_gradients = expected_linear(operands)
        result, gradients = on_path(path, lambda o=operands: run_linear(o))
        assert torch.cuda.current_device() == 0
        assert result.device == device
        assert_close(result, expected)
        assert_gradients_close(gradients, expected_gradients, dtype=torch.bfloat16)


@pytest.mark.parametrize("T", [1, 700])
@every_path
def test_a_step_leaves_no_synchronisation(path: Any, T: int, cuda: torch.device) -> None:
    leaves = make_operands(KERNEL_GRIDS["hybrid"], (T,), dtype=torch.bfloat16, device=cuda)
    leaves = leaves.requiring_grad(TRAINED)
    on_path(path, lambda: step_of(leaves, TRAINED, dropout_p=0.5))
    previous = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_path(path, lambda: step_of(leaves, TRAINED, dropout_p=0.5))
    finally:
        torch.cuda.set_sync_debug_mode(previous)
