"""fp32 operands on CUDA: exact products, or those of tf32, as torch's own setting says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ops_cases import (
    TOLERANCE,
    Grid,
    Operands,
    expected_add,
    expected_linear,
    make_operands,
    relative_error,
    run_add,
    run_linear,
)
from ops_paths import on_path

OPERATORS = {"linear": (run_linear, expected_linear), "add": (run_add, expected_add)}
operators = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
paths = pytest.mark.parametrize("path", [None, "aten"], ids=["chosen", "aten"])
tokens = pytest.mark.parametrize("T", [1, 65, 700])

# Sizes that tensor cores take as they are.
GRID = Grid(k_in=2, k_out=2, n=256, m=256, s=32, r0=32)
# A product of tf32 keeps 11 bits of its operands, so its error is some 2^-12 of its size.
LEAST_OF_TF32, MOST_OF_TF32 = 2e-5, 3e-3


@pytest.fixture
def tf32(cuda: torch.device) -> Iterator[Any]:
    """`torch.backends.cuda.matmul`, whose setting ends with the test."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    yield matmul
    matmul.allow_tf32 = before


def _errors(operator: Any, path: Any, operands: Operands) -> dict[str, float]:
    """Relative errors of the result and of every gradient."""
    run, expect = operator
    result, gradients = on_path(path, lambda: run(operands))
    expected, expected_gradients = expect(operands)
    errors = {name: relative_error(g, expected_gradients[name]) for name, g in gradients.items()}
    return {"result": relative_error(result, expected), **errors}


@pytest.mark.usefixtures("poisoned_memory")
@tokens
@operators
@paths
def test_without_tf32_every_product_is_of_fp32(
    path: Any, operator: Any, T: int, tf32: Any, cuda: torch.device
) -> None:
    tf32.allow_tf32 = False
    errors = _errors(operator, path, make_operands(GRID, (T,), dtype=torch.float32, device=cuda))
    assert max(errors.values()) <= TOLERANCE[torch.float32], errors


@paths
def test_with_tf32_products_take_it(path: Any, tf32: Any, cuda: torch.device) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the GPU has no tf32")
    tf32.allow_tf32 = True
    operands = make_operands(GRID, (700,), dtype=torch.float32, device=cuda)
    errors = _errors(OPERATORS["linear"], path, operands)
    assert max(errors.values()) <= MOST_OF_TF32, errors
    # Which of the adapter's thin products are worth it is the library's choice.
    assert min(errors["result"], errors["x"]) >= LEAST_OF_TF32, errors


def test_fp32_adapters_of_16_bit_layers_do_not_depend_on_it(tf32: Any, cuda: torch.device) -> None:
    operands = make_operands(
        GRID, (700,), dtype=torch.bfloat16, factor_dtype=torch.float32, device=cuda
    )
    results = []
    for allowed in (False, True):
        tf32.allow_tf32 = allowed
        result, gradients = run_linear(operands)
        results.append([result, *gradients.values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
