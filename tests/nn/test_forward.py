"""The layer's forward and gradients against the dense update and against the einsum oracle."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gralora import reference
from gralora.nn import GraLoRALinear

OPTIONS = [
    pytest.param({"r": 8, "k": 2}, id="k2"),
    pytest.param({"r": 8, "k": 1}, id="k1"),
    pytest.param({"r": 8, "k": (4, 2)}, id="k_out4-k_in2"),
    pytest.param({"r": 32, "k": 4}, id="sub-rank-above-block"),
    pytest.param({"r": 8, "k": 2, "hybrid_r": 3}, id="hybrid"),
    pytest.param({"r": 8, "k": 2, "bias": False}, id="no-bias"),
]
SHAPES = [
    pytest.param((12,), id="1-D"),
    pytest.param((5, 12), id="2-D"),
    pytest.param((2, 3, 12), id="3-D"),
    pytest.param((2, 2, 3, 12), id="4-D"),
    pytest.param((0, 12), id="no-tokens"),
]


def scale(layer):
    """2r / (r + hybrid_r): the scale of an adapter whose alpha was left out."""
    r = layer.gralora_B["default"].shape[1]
    return 2 * r / (r + (layer.lora_A["default"].shape[0] if len(layer.lora_A) else 0))


def oracle(layer, x):
    """The einsum oracle on the layer's own parameters."""
    return reference.linear(
        x,
        layer.weight,
        layer.bias,
        layer.gralora_A["default"],
        layer.gralora_B["default"],
        scaling=scale(layer),
        lora_A=layer.lora_A["default"] if len(layer.lora_A) else None,
        lora_B=layer.lora_B["default"] if len(layer.lora_B) else None,
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_forward_is_the_base_plus_the_dense_update(device, options, shape, randomise, dense_update):
    layer = randomise(GraLoRALinear(12, 8, device=device, dtype=torch.float64, **options))
    x = torch.randn(shape, device=device, dtype=torch.float64)
    weight = layer.weight + dense_update(layer, "default", scale(layer)).to(device)
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias))


@pytest.mark.parametrize("options", OPTIONS)
def test_forward_agrees_with_the_oracle(device, options, randomise):
    layer = randomise(GraLoRALinear(12, 8, device=device, dtype=torch.float64, **options))
    x = torch.randn(2, 3, 12, device=device, dtype=torch.float64)
    torch.testing.assert_close(layer(x), oracle(layer, x))


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_agree_with_the_oracle(device, options, randomise):
    layer = randomise(GraLoRALinear(12, 8, device=device, dtype=torch.float64, **options))
    x = torch.randn(2, 3, 12, device=device, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(2, 3, 8, device=device, dtype=torch.float64)
    inputs = [x, *(p for p in layer.parameters() if p.requires_grad)]
    ours = torch.autograd.grad(layer(x), inputs, dy)
    theirs = torch.autograd.grad(oracle(layer, x), inputs, dy)
    assert len(ours) == 5 if "hybrid_r" in options else 3
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_trainable_weight_and_bias_get_their_gradients(randomise):
    layer = randomise(GraLoRALinear(12, 8, r=4, k=2, dtype=torch.float64))
    layer.weight.requires_grad_(True)
    layer.bias.requires_grad_(True)
    x = torch.randn(3, 12, dtype=torch.float64)
    dy = torch.randn(3, 8, dtype=torch.float64)
    layer(x).backward(dy)
    torch.testing.assert_close(layer.weight.grad, dy.T @ x)
    torch.testing.assert_close(layer.bias.grad, dy.sum(0))


def test_frozen_base_gets_no_gradient(randomise):
    layer = randomise(GraLoRALinear(12, 8, r=4, k=2))
    layer(torch.randn(3, 12)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is None


def test_noncontiguous_input(randomise):
    layer = randomise(GraLoRALinear(12, 8, r=4, k=2, dtype=torch.float64))
    x = torch.randn(12, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x.T), layer(x.T.contiguous()))


def test_several_active_adapters_add_up(device, randomise, dense_update):
    layer = GraLoRALinear(12, 8, r=4, k=2, device=device, dtype=torch.float64)
    layer.add_adapter("grid", r=8, k=(2, 4))
    layer.add_adapter("hybrid", r=4, k=4, hybrid_r=2, alpha=3)
    randomise(layer)
    layer.set_adapter(["default", "grid", "hybrid"])
    x = torch.randn(5, 12, device=device, dtype=torch.float64)
    update = (
        dense_update(layer, "default", 2.0)
        + dense_update(layer, "grid", 2.0)
        + dense_update(layer, "hybrid", 3 / 6)
    )
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight + update.to(device), layer.bias))


def test_gradients_of_several_active_adapters(randomise):
    layer = GraLoRALinear(12, 8, r=4, k=2, dtype=torch.float64)
    layer.add_adapter("other", r=8, k=4, hybrid_r=2)
    randomise(layer)
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(5, 8, dtype=torch.float64)
    each = {}
    for name in ("default", "other"):
        layer.set_adapter(name)
        layer(x).backward(dy)
        each[name] = {key: p.grad for key, p in layer.named_parameters() if p.grad is not None}
        layer.zero_grad()
    layer.set_adapter(["default", "other"])
    layer(x).backward(dy)
    together = {key: p.grad for key, p in layer.named_parameters() if p.grad is not None}
    assert together.keys() == each["default"].keys() | each["other"].keys()
    for key, value in together.items():
        torch.testing.assert_close(value, {**each["default"], **each["other"]}[key])


def test_input_gradient_of_several_active_adapters(randomise, dense_update):
    layer = GraLoRALinear(12, 8, r=4, k=2, dtype=torch.float64)
    layer.add_adapter("other", r=8, k=4)
    randomise(layer)
    layer.set_adapter(["default", "other"])
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(5, 8, dtype=torch.float64)
    layer(x).backward(dy)
    weight = layer.weight + dense_update(layer, "default", 2.0) + dense_update(layer, "other", 2.0)
    torch.testing.assert_close(x.grad, dy @ weight)


def test_inactive_adapter_has_no_part(randomise, dense_update):
    layer = GraLoRALinear(12, 8, r=4, k=2, dtype=torch.float64)
    layer.add_adapter("other", r=8, k=4)
    randomise(layer)
    layer.set_adapter("other")
    x = torch.randn(5, 12, dtype=torch.float64)
    weight = layer.weight + dense_update(layer, "other", 2.0)
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias))


def test_output_is_no_view_of_the_input(randomise):
    layer = randomise(GraLoRALinear(8, 8, r=4, k=2))
    for tokens in (0, 3):
        x = torch.randn(tokens, 8)
        assert layer(x)._base is not x


def test_wrong_input_width_is_refused():
    layer = GraLoRALinear(12, 8, r=4, k=2)
    with pytest.raises((RuntimeError, ValueError), match="12"):
        layer(torch.randn(3, 8))
