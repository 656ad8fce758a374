"""The ways that products of adapters take on CUDA, and shapes that all of them can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from ops_cases import Grid

import gralora.kernels
from gralora import _C

Result = TypeVar("Result")

PATHS: tuple[Any, ...] = ("aten", "sm80", "sm90")
# The choosers' own way as well.
EVERY_PATH: tuple[Any, ...] = (None, *PATHS)
paths = pytest.mark.parametrize("path", PATHS)
every_path = pytest.mark.parametrize("path", EVERY_PATH, ids=["chosen", *PATHS])

# x's dtype, and the factors'.
DTYPES = {
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp16": (torch.float16, torch.float16),
    "bf16_fp32_factors": (torch.bfloat16, torch.float32),
    "fp16_fp32_factors": (torch.float16, torch.float32),
}
dtypes = pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES.keys())

# SmolLM2-135M: 576 wide, 192 for keys and values, 1536 inside; blocks of 288, 144, 96 and 48.
SMOLLM2 = {
    "smollm2_576_576": Grid(k_in=2, k_out=2, n=288, m=288, s=8),
    "smollm2_576_192": Grid(k_in=4, k_out=4, n=144, m=48, s=8),
    "smollm2_288_48": Grid(k_in=2, k_out=4, n=288, m=48, s=16),
    "smollm2_576_1536": Grid(k_in=4, k_out=4, n=144, m=384, s=4),
    "smollm2_1536_576_hybrid": Grid(k_in=4, k_out=4, n=384, m=144, s=8, r0=8),
}
GRIDS = {
    **SMOLLM2,
    "k_16": Grid(k_in=16, k_out=16, n=24, m=16, s=2),
    "k_2_by_16": Grid(k_in=16, k_out=2, n=8, m=136, s=4),
    "k_16_by_1": Grid(k_in=1, k_out=16, n=200, m=8, s=3),
    "hybrid": Grid(k_in=2, k_out=2, n=96, m=64, s=8, r0=24),
    "plain_pair_alone": Grid(k_in=1, k_out=1, n=136, m=72, s=0, r0=16),
    "odd_ranks": Grid(k_in=2, k_out=2, n=96, m=64, s=3),
    "odd_ranks_hybrid": Grid(k_in=2, k_out=4, n=96, m=64, s=1, r0=5),
    "odd_plain_pair_alone": Grid(k_in=1, k_out=1, n=136, m=72, s=0, r0=3),
}
grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


def runs_sm90() -> bool:
    """Whether the build has kernels of compute capability 9.0a, and the GPU is one for them."""
    built = "90a" in _C.build_info()["cuda_architectures"]
    return built and torch.cuda.get_device_capability() == (9, 0)


def chip() -> dict[str, Any]:
    """The current GPU as keywords of the choosers, without its clusters: they sway no path."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {"processors": properties.multi_processor_count, "sm90": runs_sm90()}


def on_path(path: Any, call: Callable[[], Result]) -> Result:
    """What `call` returns while `path` is forced; skips where the GPU has no such path."""
    if path == "sm90" and not runs_sm90():
        pytest.skip("no kernels of compute capability 9.0a run on this GPU")
    with gralora.kernels.forced(path):
        return call()
