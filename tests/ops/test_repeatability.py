"""Twenty runs give the same bits on every path, at sizes where sums are split among processors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops_cases import FACTORS, Grid, Operands, make_operands
from ops_paths import SMOLLM2, every_path, on_path
from ops_poison import poison_free_memory
from torch import Tensor

RUNS = 20
# Few tokens and long widths split a projection; many tokens split the sums over them.
SIZES = {
    "few_tokens_of_a_wide_layer": (Grid(k_in=2, k_out=2, n=4096, m=1024, s=16), 3),
    "sixteen_tokens_one_input_block": (Grid(k_in=1, k_out=1, n=4096, m=4096, s=16), 16),
    "many_tokens_of_a_narrow_layer": (Grid(k_in=4, k_out=4, n=64, m=64, s=8, r0=8), 9000),
    "many_tokens_of_few_columns": (Grid(k_in=1, k_out=2, n=64, m=32, s=4), 20000),
    "a_usual_layer": (Grid(k_in=4, k_out=4, n=512, m=512, s=16), 2048),
    "rank_256": (Grid(k_in=8, k_out=8, n=256, m=256, s=32), 1024),
    **{name: (grid, 2049) for name, grid in SMOLLM2.items()},
}
sizes = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
dtypes = pytest.mark.parametrize(
    "factor_dtype", [torch.bfloat16, torch.float32], ids=["bf16_factors", "fp32_factors"]
)


def _step(operands: Operands, dropout_p: float) -> list[Tensor]:
    torch.manual_seed(4)
    leaves = operands.requiring_grad(["x", *FACTORS])
    result = leaves.linear(dropout_p=dropout_p)
    given = list(leaves.named(["x", *FACTORS]).values())
    return [result.detach(), *torch.autograd.grad(result, given, leaves.dy)]


@pytest.mark.parametrize("dropout_p", [0.0, 0.3], ids=["whole", "dropped"])
@dtypes
@sizes
@every_path
def test_forward_and_gradients(
    path: Any,
    size: tuple[Grid, int],
    factor_dtype: torch.dtype,
    dropout_p: float,
    cuda: torch.device,
) -> None:
    grid, tokens = size
    operands = make_operands(
        grid, (tokens,), dtype=torch.bfloat16, factor_dtype=factor_dtype, device=cuda
    )
    first = on_path(path, lambda: _step(operands, dropout_p))
    for run in range(1, RUNS):
        # Once the memory is full of NaN, and in between it holds what the last run left.
        if run == RUNS // 2:
            poison_free_memory()
        again = on_path(path, lambda: _step(operands, dropout_p))
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True)), run
