"""torch.compile: one whole graph, and no new one when the number of tokens changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gralora.nn import GraLoRALinear

TOKENS = [7, 12, 33, 128, 5]
LAYERS = [
    pytest.param({"r": 8, "k": 2}, torch.float32, id="k2"),
    pytest.param({"r": 8, "k": (2, 4), "hybrid_r": 3}, torch.float32, id="hybrid"),
    pytest.param({"r": 8, "k": 2, "hybrid_r": 3}, torch.bfloat16, id="fp32-on-bf16"),
    pytest.param({"r": 8, "k": 2, "dropout": 0.5}, torch.float32, id="dropout"),
    pytest.param({"r": 8, "k": 2, "bias": False}, torch.float32, id="no-bias"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    """No graph of another test is at hand, and every recompilation is an error."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def compiled(module, backend="aot_eager"):
    return torch.compile(module, fullgraph=True, dynamic=True, backend=backend)


def step(function, layer, x):
    """Output, and gradients of the input and the factors, under a fixed seed."""
    x = x.detach().clone().requires_grad_(True)
    torch.manual_seed(6)
    y = function(x)
    trainable = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(y.square().sum(), [x, *trainable.values()])
    return {"y": y.detach(), "x": grads[0], **dict(zip(trainable, grads[1:], strict=True))}


def compare(function, layer, x, tolerance=None):
    actual, expected = step(function, layer, x), step(layer, layer, x)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("options", "dtype"), LAYERS)
def test_steps_of_any_length_agree_with_eager(device, options, dtype, randomise):
    layer = randomise(GraLoRALinear(16, 24, device=device, dtype=dtype, **options))
    function = compiled(layer)
    for tokens in TOKENS:
        compare(function, layer, torch.randn(tokens, 16, device=device, dtype=dtype))


def test_inductor_agrees_with_eager(device, randomise):
    layer = randomise(GraLoRALinear(16, 24, r=8, k=2, hybrid_r=3, device=device))
    function = compiled(layer, "inductor")
    for tokens in TOKENS:
        compare(function, layer, torch.randn(tokens, 16, device=device), tolerance=1e-4)


def test_inductor_draws_a_new_mask_each_call(device, randomise):
    layer = randomise(GraLoRALinear(16, 24, r=8, k=2, dropout=0.5, device=device))
    function = compiled(layer, "inductor")
    x = torch.randn(12, 16, device=device)
    assert not torch.equal(function(x), function(x))


def test_inductor_uses_one_mask_forward_and_backward(device):
    layer = GraLoRALinear(16, 16, r=16, k=1, alpha=16, dropout=0.5, bias=False, device=device)
    with torch.no_grad():
        layer.weight.zero_()
        layer.gralora_A["default"].copy_(torch.eye(16)[None])
        layer.gralora_B["default"].copy_(torch.eye(16)[None])
    x = torch.ones(12, 16, device=device, requires_grad=True)
    y = compiled(layer, "inductor")(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    assert 0 < (y == 0).float().mean().item() < 1


def test_batches_of_any_size_agree_with_eager(device, randomise):
    layer = randomise(GraLoRALinear(16, 24, r=8, k=2, device=device))
    function = compiled(layer)
    for batch, tokens in [(2, 7), (3, 12), (5, 5)]:
        compare(function, layer, torch.randn(batch, tokens, 16, device=device))


def test_forward_without_gradients_agrees_with_eager(device, randomise):
    layer = randomise(GraLoRALinear(16, 24, r=8, k=2, hybrid_r=3, device=device)).eval()
    function = compiled(layer)
    with torch.no_grad():
        for tokens in TOKENS:
            x = torch.randn(tokens, 16, device=device)
            torch.testing.assert_close(function(x), layer(x))


@pytest.mark.parametrize("tokens", [0, 1])
def test_one_token_and_none_agree_with_eager(device, tokens, randomise):
    layer = randomise(GraLoRALinear(16, 24, r=8, k=2, hybrid_r=3, device=device))
    compare(compiled(layer), layer, torch.randn(tokens, 16, device=device))


def test_merged_layer_agrees_with_eager(device, randomise):
    layer = randomise(GraLoRALinear(16, 24, r=8, k=2, device=device))
    layer.merge()
    function = compiled(layer)
    for tokens in TOKENS:
        x = torch.randn(tokens, 16, device=device)
        torch.testing.assert_close(function(x), layer(x))


def test_switched_off_layer_agrees_with_eager(device, randomise):
    layer = randomise(GraLoRALinear(16, 24, r=8, k=2, device=device))
    layer.enable_adapters(False)
    function = compiled(layer)
    for tokens in TOKENS:
        x = torch.randn(tokens, 16, device=device)
        torch.testing.assert_close(function(x), layer(x))


def test_several_adapters_agree_with_eager(device, randomise):
    layer = GraLoRALinear(16, 24, r=8, k=2, device=device)
    layer.add_adapter("second", r=8, k=4, hybrid_r=2)
    layer.set_adapter(["default", "second"])
    function = compiled(randomise(layer))
    for tokens in TOKENS[:3]:
        compare(function, layer, torch.randn(tokens, 16, device=device))


def test_autocast_agrees_with_eager(device, randomise):
    layer = randomise(GraLoRALinear(16, 24, r=8, k=2, device=device))

    def cast(x):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return layer(x)

    function = compiled(cast)
    for tokens in TOKENS[:3]:
        x = torch.randn(tokens, 16, device=device)
        actual, expected = step(function, layer, x), step(cast, layer, x)
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=1e-2, atol=1e-2)


def test_new_adapter_values_need_no_new_graph(device, randomise):
    layer = randomise(GraLoRALinear(16, 24, r=8, k=2, device=device))
    function = compiled(layer)
    x = torch.randn(12, 16, device=device)
    function(x)
    randomise(layer, seed=1)
    torch.testing.assert_close(function(x), layer(x))


def test_stack_of_layers_is_one_graph(device, randomise):
    stack = randomise(
        nn.Sequential(
            GraLoRALinear(16, 24, r=8, k=2, device=device),
            nn.GELU(),
            GraLoRALinear(24, 16, r=8, k=4, hybrid_r=2, device=device),
        )
    )
    function = compiled(stack)
    for tokens in TOKENS[:3]:
        compare(function, stack, torch.randn(tokens, 16, device=device))
