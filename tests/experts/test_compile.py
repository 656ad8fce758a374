"""Adapted experts under torch.compile: one graph, the same numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from expert_models import routed, wrapped


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch.")
)
def test_one_graph_gives_the_same(dtype: torch.dtype, device: torch.device):
    module = wrapped("mixtral", r=8, k=2).to(device)
    module.base_layer.to(dtype)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    index, shares = (tensor.to(device) for tensor in routed(4))
    x = torch.randn(len(index), 32, device=device, dtype=dtype, requires_grad=True)
    inputs = [x, *(p for p in module.parameters() if p.requires_grad)]
    results = []
    for call in (module, compiled):
        y = call(x, index, shares.to(dtype))
        results.append([y, *torch.autograd.grad(y.float().square().sum(), inputs)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
