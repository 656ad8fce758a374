"""`torch.compile(mode="reduce-overhead")`: CUDA graphs that torch captures, trains and replays."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from gralora.nn import GraLoRALinear

PATHS = [None, "aten", "sm80", "sm90"]
paths = pytest.mark.parametrize("path", PATHS, ids=["chosen", "aten", "sm80", "sm90"])
CALLS = 5  # A graph is recorded at the second call and replayed from the third on.


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    skipped = counters["inductor"]["cudagraph_skips"]
    torch._dynamo.reset()
    assert skipped == 0, "torch fell back to a compiled function without a graph"


def _step(function, layer, x):
    torch.compiler.cudagraph_mark_step_begin()
    x = x.detach().clone().requires_grad_(True)
    y = function(x)
    factors = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(y.float().square().sum(), [x, *factors.values()])
    # The next replay overwrites what this one returned.
    return {
        "y": y.detach().clone(),
        "x": grads[0].clone(),
        **{name: grad.clone() for name, grad in zip(factors, grads[1:], strict=True)},
    }


@pytest.mark.parametrize(
    "options",
    [{"r": 16, "k": 2}, {"r": 16, "k": 4, "hybrid_r": 8}],
    ids=["smollm2_k2", "smollm2_k4_hybrid"],
)
@paths
def test_replayed_steps_agree_with_eager(cuda, randomise, forced, path, options):
    layer = randomise(GraLoRALinear(576, 192, device=cuda, dtype=torch.bfloat16, **options))
    compiled = torch.compile(layer, mode="reduce-overhead", fullgraph=True)
    with forced(path):
        for _ in range(CALLS):
            x = torch.randn(33, 576, device=cuda, dtype=torch.bfloat16)
            actual, expected = _step(compiled, layer, x), _step(layer, layer, x)
            for name, value in expected.items():
                error = torch.linalg.vector_norm((actual[name] - value).double())
                assert error <= 1e-2 * torch.linalg.vector_norm(value.double()), name


def _window(device):
    """A layer whose result is the dropped-out input."""
    layer = GraLoRALinear(
        64, 64, r=64, k=1, alpha=64, dropout=0.5, bias=False, device=device, dtype=torch.bfloat16
    )
    with torch.no_grad():
        layer.weight.zero_()
        for factors in (layer.gralora_A, layer.gralora_B):
            factors["default"].copy_(torch.eye(64)[None])
    return layer


@paths
def test_each_replay_draws_a_fresh_mask_for_forward_and_backward(cuda, forced, path):
    layer = _window(cuda)
    compiled = torch.compile(layer, mode="reduce-overhead", fullgraph=True)
    masks = set()
    with forced(path):
        for _ in range(2 * CALLS):
            torch.compiler.cudagraph_mark_step_begin()
            x = torch.ones(40, 64, device=cuda, dtype=torch.bfloat16, requires_grad=True)
            y = compiled(x)
            (dx,) = torch.autograd.grad(y.sum(), [x])
            assert torch.equal(dx, y)
            masks.add(tuple((y != 0).view(-1).tolist()))
    assert len(masks) == 2 * CALLS
