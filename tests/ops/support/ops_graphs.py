"""Steps captured in CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from ops_cases import Operands
from torch import Tensor


def capture(step: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """Captures `step` after a warm-up on the same side stream; returns the graph and its outputs.

    The stream is new each time: workspaces of libraries belong to a stream, and graphs that share
    one could not be replayed side by side.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = step()
    return graph, outputs


def step_of(leaves: Operands, names: tuple[str, ...], **options: object) -> list[Tensor]:
    """The result of `linear` and the gradients of `names`."""
    result = leaves.linear(**options)
    given = list(leaves.named(names).values())
    return [result.detach(), *torch.autograd.grad(result, given, leaves.dy)]
