"""Compiled autograd, which compiles a backward pass as it runs: our nodes are part of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from ops_cases import ADD, GRIDS, LINEAR, make_operands
from torch import Tensor


@pytest.fixture(autouse=True)
def compiled_autograd() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(compiled_autograd=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("operator", ["linear", "add"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_compiled_autograd_gives_the_same_gradients(
    operator: str, dropout_p: float, device: torch.device
) -> None:
    names = LINEAR if operator == "linear" else ADD
    operands = make_operands(GRIDS["hybrid"], (5,), device=device).requiring_grad(names)
    leaves = operands.named(names).values()

    def step() -> list[Tensor | None]:
        for leaf in leaves:
            leaf.grad = None
        torch.manual_seed(3)
        getattr(operands, operator)(dropout_p=dropout_p).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    expected = step()
    torch.testing.assert_close(torch.compile(step, backend="eager")(), expected)
