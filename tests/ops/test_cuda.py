"""What only a GPU shows: graphs, streams, devices and tensors of more than 2^31 elements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

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
from ops_philox import dropout_scale, kept
from torch import Tensor

TRAINED = ["x", *FACTORS]
WIDTH = 64


def _capture(step: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """Captures `step` after a warm-up on a side stream; returns the graph and its outputs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    return graph, outputs


def _step(leaves: Operands, **options: object) -> list[Tensor]:
    result = leaves.linear(**options)
    given = list(leaves.named(TRAINED).values())
    return [result.detach(), *torch.autograd.grad(result, given, leaves.dy)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["fp64", "bf16"])
def test_a_replayed_graph_computes_with_the_inputs_of_the_replay(
    dtype: torch.dtype, cuda: torch.device
) -> None:
    leaves = make_operands(GRIDS["hybrid"], (33,), dtype=dtype, device=cuda)
    leaves = leaves.requiring_grad(TRAINED)
    graph, outputs = _capture(lambda: _step(leaves))
    for _ in range(3):
        with torch.no_grad():
            for value in leaves.named([*TRAINED, "dy"]).values():
                value.copy_(torch.randn_like(value))
        graph.replay()
        expected, gradients = expected_linear(leaves)
        assert_close(outputs[0], expected)
        for name, output in zip(TRAINED, outputs[1:], strict=True):
            assert_close(output, gradients[name], name=name)


def _identity(device: torch.device) -> Operands:
    operands = make_operands(Grid(n=WIDTH, m=WIDTH, s=WIDTH), (40,), device=device, scaling=1.0)
    eye = torch.eye(WIDTH, dtype=torch.float64, device=device)
    operands = operands.map(lambda _: eye[None].clone(), ["A", "B"])
    operands = operands.map(torch.zeros_like, ["weight", "bias"]).map(torch.ones_like, ["x", "dy"])
    return operands.requiring_grad(["x"])


@pytest.mark.cuda_kernels
def test_each_replay_draws_a_fresh_mask(cuda: torch.device) -> None:
    leaves = _identity(cuda)
    graph, (result,) = _capture(lambda: [leaves.linear(dropout_p=0.5).detach()])
    masks = []
    for _ in range(5):
        graph.replay()
        masks.append(tuple((result != 0).view(-1).tolist()))
    assert len(set(masks)) == len(masks)


@pytest.mark.cuda_kernels
def test_forward_and_backward_of_a_replay_have_one_mask(cuda: torch.device) -> None:
    leaves = _identity(cuda)

    def step() -> list[Tensor]:
        result = leaves.linear(dropout_p=0.5)
        return [result.detach(), *torch.autograd.grad(result, [leaves.x], leaves.dy)]

    graph, (result, dx) = _capture(step)
    for _ in range(3):
        graph.replay()
        assert torch.equal(result != 0, dx != 0)


@pytest.mark.cuda_kernels
def test_the_seed_reproduces_the_masks_of_replays(cuda: torch.device) -> None:
    leaves = _identity(cuda)
    graph, (result,) = _capture(lambda: [leaves.linear(dropout_p=0.5).detach()])
    runs = []
    for _ in range(2):
        torch.cuda.manual_seed(9)
        graph.replay()
        runs.append(result.clone())
    assert torch.equal(*runs)


@pytest.mark.cuda_kernels
def test_a_replayed_merge_merges_again(cuda: torch.device) -> None:
    operands = make_operands(GRIDS["hybrid"], device=cuda)
    original = operands.weight.clone()
    delta = torch.ops.gralora.delta_weight(*operands.factors(), scaling=1.0)

    def step() -> list[Tensor]:
        torch.ops.gralora.merge_(operands.weight, *operands.factors(), scaling=1.0)
        return [operands.weight]

    graph, (weight,) = _capture(step)
    weight.copy_(original)
    graph.replay()
    graph.replay()
    assert_close(weight, original + 2 * delta)


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


def _need_memory(gibibytes: int) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gibibytes << 30:
        pytest.skip(f"{free >> 30} GiB of GPU memory are free, {gibibytes} are needed")


@pytest.fixture
def big(cuda: torch.device) -> Iterator[torch.device]:
    """The CUDA device, with torch's cache empty before and after."""
    torch.cuda.empty_cache()
    _need_memory(24)
    yield cuda
    torch.cuda.empty_cache()


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


def test_a_step_leaves_no_synchronisation(cuda: torch.device) -> None:
    leaves = make_operands(GRIDS["hybrid"], device=cuda).requiring_grad(TRAINED)
    _step(leaves, dropout_p=0.5)
    previous = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _step(leaves, dropout_p=0.5)
    finally:
        torch.cuda.set_sync_debug_mode(previous)


@pytest.mark.cuda_kernels
def test_dropout_on_cuda_is_dropout_on_the_cpu(cuda: torch.device) -> None:
    x = torch.randn(129, 77)
    rng_state = torch.tensor([77, -5])
    on_cpu = torch.ops.gralora.dropout(x, rng_state, p=0.3)
    on_cuda = torch.ops.gralora.dropout(x.to(cuda), rng_state.to(cuda), p=0.3)
    assert torch.equal(on_cuda.cpu(), on_cpu)
