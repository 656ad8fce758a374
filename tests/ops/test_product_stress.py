"""Ten thousand products that project on the way: odd shapes, several streams, a busy GPU."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from ops_cases import Grid, Operands, make_operands
from ops_paths import runs_sm90
from torch import Tensor

import gralora.kernels

LAUNCHES = 10_000
STREAMS = 3
CASES = 24


@dataclass
class Case:
    """A layer, and the bits of one pass by itself."""

    operands: Operands
    results: tuple[Tensor, ...]

    @classmethod
    def draw(cls, generator: random.Random, tokens: tuple[int, int], device: torch.device) -> Case:
        """Blocks and ranks that tensor maps can describe; anything else at random."""
        k_in, k_out = generator.choice((1, 2, 3, 4)), generator.choice((1, 2, 3, 4))
        grid = Grid(
            k_in=k_in,
            k_out=k_out,
            n=8 * generator.randint(1, 40),
            m=8 * generator.randint(1, 40),
            s=8 * generator.randint(1, 4),
        )
        operands = make_operands(
            grid,
            (generator.randint(*tokens),),
            dtype=torch.bfloat16,
            device=device,
            bias=False,
        )
        return cls(operands, _passes(operands))


def _passes(operands: Operands) -> tuple[Tensor, ...]:
    """y, dx, dA and dB."""
    y, H, _ = torch.ops.gralora.linear_forward(
        operands.x, operands.weight, None, operands.A, operands.B, None, None, None,
        scaling=0.5, dropout_p=0.0,
    )  # fmt: skip
    dx, _, _, dA, dB, _, _ = torch.ops.gralora.linear_backward(
        operands.dy, operands.x, operands.weight, operands.A, operands.B, None, None, H, None, None,
        scaling=0.5, dropout_p=0.0, output_mask=[True, False, False, True, True, False, False],
    )  # fmt: skip
    return y, dx, dA, dB


@pytest.fixture
def cases(cuda: torch.device) -> list[Case]:
    """They are taken one at a time, with the GPU idle before."""
    if not runs_sm90():
        pytest.skip("no kernels of compute capability 9.0a run on this GPU")
    generator = random.Random(20520355)
    with gralora.kernels.forced("sm90"):
        drawn = []
        for number in range(CASES):
            # From 4096 tokens on gradients are summed span by span.
            tokens = (4096, 9000) if number % 4 == 0 else (1, 3000)
            drawn.append(Case.draw(generator, tokens, cuda))
            torch.cuda.synchronize()
    return drawn


@pytest.mark.cuda_kernels
def test_many_launches_beside_each_other_on_a_busy_gpu(
    cases: list[Case], cuda: torch.device
) -> None:
    generator = random.Random(7)
    streams = [torch.cuda.Stream() for _ in range(STREAMS)]
    busy = torch.cuda.Stream()
    wrong = [torch.zeros((), dtype=torch.int64, device=cuda) for _ in streams]
    other = torch.randn(2048, 2048, device=cuda, dtype=torch.bfloat16)
    torch.cuda.synchronize()
    with gralora.kernels.forced("sm90"):
        for launch in range(0, LAUNCHES, 2):
            case = generator.choice(cases)
            which = launch // 2 % STREAMS
            with torch.cuda.stream(streams[which]):
                for actual, expected in zip(_passes(case.operands), case.results, strict=True):
                    wrong[which] += (actual != expected).sum()
            if launch % 20 == 0:
                with torch.cuda.stream(busy):
                    other @ other
    torch.cuda.synchronize()
    assert [count.item() for count in wrong] == [0] * STREAMS


@pytest.mark.cuda_kernels
def test_graphs_that_replay_beside_each_other_keep_their_counters_apart(
    cases: list[Case], cuda: torch.device
) -> None:
    recorded = []
    with gralora.kernels.forced("sm90"):
        for case in cases[:STREAMS]:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                results = _passes(case.operands)
            recorded.append((graph, case, results, torch.cuda.Stream()))
    torch.cuda.synchronize()
    for _ in range(50):
        for graph, _, results, stream in recorded:
            with torch.cuda.stream(stream):
                for result in results:
                    result.fill_(torch.nan)
                graph.replay()
    torch.cuda.synchronize()
    for _, case, results, _ in recorded:
        for actual, expected in zip(results, case.results, strict=True):
            assert torch.equal(actual, expected)
