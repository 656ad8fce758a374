"""The very first launch of each kernel in a process may be one that a graph captures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "support" / "ops_first_launch.py"
SECONDS = 200


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("path", ["aten", "sm80", "sm90"])
def test_first_launch_inside_a_capture(path: str) -> None:
    run = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), path],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "captured"


BACKWARD_FIRST = """
import torch
import gralora.kernels
T, N, k, r = 512, 1024, 4, 64
half = {"device": "cuda", "dtype": torch.bfloat16}
x, weight = torch.randn(T, N, **half, requires_grad=True), torch.randn(N, N, **half)
A = torch.randn(k, N // k, r, **half, requires_grad=True)
B = torch.randn(k, r, N // k, **half, requires_grad=True)
dy = torch.randn(T, N, **half)
with gralora.kernels.forced("aten"):
    y = torch.ops.gralora.linear(x, weight, None, A, B, None, None, scaling=0.5)
y.backward(dy)
torch.cuda.synchronize()
print("done")
"""


@pytest.mark.usefixtures("cuda")
def test_the_first_kernel_of_all_may_be_one_of_the_backward_pass() -> None:
    run = subprocess.run(
        [sys.executable, "-P", "-c", BACKWARD_FIRST],
        capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "done"
