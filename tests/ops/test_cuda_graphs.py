"""Captured in CUDA graphs the operators compute with what a replay brings, on every path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops_cases import (
    FACTORS,
    GRIDS,
    Grid,
    Operands,
    assert_close,
    expected_linear,
    make_operands,
)
from ops_graphs import capture, step_of
from ops_paths import GRIDS as KERNEL_GRIDS
from ops_paths import every_path, on_path
from ops_philox import dropout_scale
from torch import Tensor

TRAINED = ("x", *FACTORS)
WIDTH = 64


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["fp64", "bf16"])
def test_a_replayed_graph_computes_with_the_inputs_of_the_replay(
    dtype: torch.dtype, cuda: torch.device
) -> None:
    leaves = make_operands(GRIDS["hybrid"], (33,), dtype=dtype, device=cuda)
    leaves = leaves.requiring_grad(TRAINED)
    graph, outputs = capture(lambda: step_of(leaves, TRAINED))
    for _ in range(3):
        with torch.no_grad():
            for value in leaves.named([*TRAINED, "dy"]).values():
                value.copy_(torch.randn_like(value))
        graph.replay()
        expected, gradients = expected_linear(leaves)
        assert_close(outputs[0], expected)
        for name, output in zip(TRAINED, outputs[1:], strict=True):
            assert_close(output, gradients[name], name=name)


@pytest.mark.cuda_kernels
@pytest.mark.parametrize("factor_dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("T", [1, 33, 1500])
@pytest.mark.parametrize("grid", ["hybrid", "smollm2_288_48"])
@every_path
def test_a_replay_of_each_path(
    path: Any, grid: str, T: int, factor_dtype: torch.dtype, cuda: torch.device
) -> None:
    leaves = make_operands(
        KERNEL_GRIDS[grid], (T,), dtype=torch.bfloat16, factor_dtype=factor_dtype, device=cuda
    )
    leaves = leaves.requiring_grad(TRAINED)
    names = tuple(leaves.named(TRAINED))
    graph, outputs = on_path(path, lambda: capture(lambda: step_of(leaves, names)))
    for _ in range(3):
        with torch.no_grad():
            for value in leaves.named([*TRAINED, "dy"]).values():
                value.copy_(torch.randn_like(value))
            for output in outputs:
                output.fill_(torch.nan)
        graph.replay()
        expected, gradients = expected_linear(leaves)
        assert_close(outputs[0], expected, dtype=torch.bfloat16)
        for name, output in zip(names, outputs[1:], strict=True):
            assert_close(output, gradients[name], dtype=torch.bfloat16, name=f"d{name}")


@pytest.mark.cuda_kernels
@every_path
def test_two_graphs_replayed_in_turn_do_not_disturb_each_other(
    path: Any, cuda: torch.device
) -> None:
    # Replays read their operands where they were, so those must live as long as the graphs.
    operands = [
        make_operands(KERNEL_GRIDS["hybrid"], (1500,), dtype=torch.bfloat16, device=cuda)
        for _ in range(2)
    ]
    operands = [leaves.requiring_grad(TRAINED) for leaves in operands]
    pair = [
        on_path(path, lambda o=leaves: capture(lambda: step_of(o, TRAINED))) for leaves in operands
    ]
    alone = []
    for graph, outputs in pair:
        graph.replay()
        alone.append([output.clone() for output in outputs])
    # In turn, not side by side: the library's products would then share its workspace.
    for _ in range(20):
        for graph, _ in pair:
            graph.replay()
    torch.cuda.synchronize()
    for (_, outputs), expected in zip(pair, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def _identity(device: torch.device, dtype: torch.dtype = torch.float64) -> Operands:
    grid = Grid(n=WIDTH, m=WIDTH, s=WIDTH)
    operands = make_operands(grid, (40,), dtype=dtype, device=device, scaling=1.0)
    eye = torch.eye(WIDTH, dtype=dtype, device=device)
    operands = operands.map(lambda _: eye[None].clone(), ["A", "B"])
    operands = operands.map(torch.zeros_like, ["weight", "bias"]).map(torch.ones_like, ["x", "dy"])
    return operands.requiring_grad(["x"])


@pytest.mark.cuda_kernels
@every_path
def test_each_replay_draws_a_fresh_mask(path: Any, cuda: torch.device) -> None:
    leaves = _identity(cuda, torch.bfloat16)
    graph, (result,) = on_path(
        path, lambda: capture(lambda: [leaves.linear(dropout_p=0.5).detach()])
    )
    masks = []
    for _ in range(5):
        graph.replay()
        masks.append(tuple((result != 0).view(-1).tolist()))
    assert len(set(masks)) == len(masks)


@pytest.mark.cuda_kernels
@every_path
def test_forward_and_backward_of_a_replay_have_one_mask(path: Any, cuda: torch.device) -> None:
    leaves = _identity(cuda, torch.bfloat16)

    def step() -> list[Tensor]:
        result = leaves.linear(dropout_p=0.5)
        return [result.detach(), *torch.autograd.grad(result, [leaves.x], leaves.dy)]

    graph, (result, dx) = on_path(path, lambda: capture(step))
    for _ in range(3):
        graph.replay()
        assert torch.equal(result, dx)
        assert set(result.unique().tolist()) == {0.0, dropout_scale(0.5)}


@pytest.mark.cuda_kernels
def test_the_seed_reproduces_the_masks_of_replays(cuda: torch.device) -> None:
    leaves = _identity(cuda)
    graph, (result,) = capture(lambda: [leaves.linear(dropout_p=0.5).detach()])
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

    graph, (weight,) = capture(step)
    weight.copy_(original)
    graph.replay()
    graph.replay()
    assert_close(weight, original + 2 * delta)


@pytest.mark.cuda_kernels
@every_path
def test_masks_of_replays_are_independent(path: Any, cuda: torch.device) -> None:
    leaves = _identity(cuda, torch.bfloat16)
    graph, (result,) = on_path(
        path, lambda: capture(lambda: [leaves.linear(dropout_p=0.5).detach()])
    )
    masks = []
    for _ in range(64):
        graph.replay()
        masks.append((result != 0).double().view(-1) - 0.5)
    drawn = torch.stack(masks)
    # Products of two masks are 1/4 or -1/4 at random, E of them have a mean of deviation
    # 1/(4 sqrt(E)).
    products = drawn @ drawn.T / drawn.shape[1]
    products.fill_diagonal_(0)
    assert float(products.abs().max()) < 5.5 * 0.25 * drawn.shape[1] ** -0.5
