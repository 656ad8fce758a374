"""A process of its own whose first launches of gralora's kernels happen inside a graph's capture.

Started by path with a forced path's name; prints "captured" when every replay was right.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from ops_cases import FACTORS, assert_close, expected_linear, make_operands
from ops_graphs import step_of
from ops_paths import GRIDS, on_path

TRAINED = ("x", *FACTORS)
TOKENS = (3, 700, 3000)


def warm_libraries_up(dtype: torch.dtype) -> None:
    """Handles of libraries, in this thread and in autograd's, need memory before a capture."""
    x, weight = (torch.randn(64, 64, device="cuda").to(dtype).requires_grad_() for _ in "xw")
    bias = torch.zeros(64, device="cuda", dtype=dtype)
    torch.nn.functional.linear(x, weight, bias).sum().backward()
    blocks = torch.randn(2, 64, 64, device="cuda").to(dtype)
    torch.bmm(blocks, blocks)


def capture_and_replay(path: str, tokens: int, dtype: torch.dtype, dropout_p: float) -> None:
    """Captures a step that ran nowhere before, replays it with new inputs and compares."""
    leaves = make_operands(
        GRIDS["hybrid"], (tokens,), dtype=dtype, factor_dtype=torch.float32, device="cuda"
    ).requiring_grad(TRAINED)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = on_path(path, lambda: step_of(leaves, TRAINED, dropout_p=dropout_p))
    with torch.no_grad():
        for value in leaves.named((*TRAINED, "dy")).values():
            value.copy_(torch.randn_like(value))
    graph.replay()
    torch.cuda.synchronize()
    if dropout_p:
        assert all(bool(output.isfinite().all()) for output in outputs)
        return
    expected, gradients = expected_linear(leaves)
    assert_close(outputs[0], expected, dtype=dtype)
    for name, output in zip(TRAINED, outputs[1:], strict=True):
        assert_close(output, gradients[name], dtype=dtype, name=f"d{name}")


def main(path: str) -> None:
    """Every size and dtype, each with and without dropout."""
    torch.manual_seed(1)
    for dtype in (torch.bfloat16, torch.float16):
        warm_libraries_up(dtype)
        for tokens in TOKENS:
            for dropout_p in (0.0, 0.5):
                capture_and_replay(path, tokens, dtype, dropout_p)
    print("captured")


if __name__ == "__main__":
    main(sys.argv[1])
