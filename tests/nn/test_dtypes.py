"""Which dtype an adapter gets, and what that means for outputs and gradients."""

from __future__ import annotations

import pytest
import torch

from gralora.nn import GraLoRALinear

RULE = [
    pytest.param(torch.float64, torch.float64, id="float64"),
    pytest.param(torch.float32, torch.float32, id="float32"),
    pytest.param(torch.bfloat16, torch.float32, id="bfloat16"),
    pytest.param(torch.float16, torch.float32, id="float16"),
]


def factor_dtypes(layer):
    """The dtypes of all factors of all adapters."""
    return {p.dtype for name, p in layer.named_parameters() if "_A." in name or "_B." in name}


@pytest.mark.parametrize(("base", "factors"), RULE)
def test_adapters_of_a_base_dtype(base, factors):
    layer = GraLoRALinear(12, 8, r=4, hybrid_r=2, dtype=base)
    assert layer.weight.dtype == base
    assert factor_dtypes(layer) == {factors}


@pytest.mark.parametrize(("base", "factors"), RULE)
def test_from_linear_follows_the_same_rule(base, factors):
    layer = GraLoRALinear.from_linear(torch.nn.Linear(12, 8, dtype=base), r=4, hybrid_r=2)
    assert factor_dtypes(layer) == {factors}


def test_added_adapter_follows_the_same_rule():
    layer = GraLoRALinear(12, 8, r=4, dtype=torch.bfloat16)
    layer.add_adapter("second", r=4, hybrid_r=2)
    assert factor_dtypes(layer) == {torch.float32}


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_adapter_dtype_overrides_the_rule(base, wanted):
    layer = GraLoRALinear(12, 8, r=4, hybrid_r=2, dtype=base, adapter_dtype=wanted)
    assert factor_dtypes(layer) == {wanted}


def test_adapter_dtype_in_from_linear():
    linear = torch.nn.Linear(12, 8, dtype=torch.bfloat16)
    layer = GraLoRALinear.from_linear(linear, r=4, adapter_dtype=torch.bfloat16)
    assert factor_dtypes(layer) == {torch.bfloat16}


def test_adapter_dtype_in_add_adapter():
    layer = GraLoRALinear(12, 8, r=4, dtype=torch.bfloat16)
    layer.add_adapter("second", r=4, adapter_dtype=torch.bfloat16)
    assert layer.gralora_A["second"].dtype == torch.bfloat16
    assert layer.gralora_A["default"].dtype == torch.float32


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float16], ids=str)
def test_output_has_the_input_dtype(device, base, randomise):
    layer = randomise(GraLoRALinear(16, 8, r=4, k=2, device=device, dtype=base))
    assert layer(torch.randn(3, 16, device=device, dtype=base)).dtype == base


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float16], ids=str)
def test_fp32_adapters_get_fp32_gradients(device, base, randomise):
    layer = randomise(GraLoRALinear(16, 8, r=4, k=2, hybrid_r=2, device=device, dtype=base))
    layer(torch.randn(3, 16, device=device, dtype=base)).sum().backward()
    grads = [p.grad for p in layer.parameters() if p.requires_grad]
    assert {g.dtype for g in grads} == {torch.float32}


def test_fp32_gradients_are_not_rounded_to_bf16(device, randomise):
    layer = randomise(GraLoRALinear(16, 8, r=4, k=2, device=device, dtype=torch.bfloat16))
    layer(torch.randn(33, 16, device=device, dtype=torch.bfloat16)).sum().backward()
    for factor in (layer.gralora_A, layer.gralora_B):
        grad = factor["default"].grad
        assert not torch.equal(grad, grad.bfloat16().float())


def test_half_precision_forward_is_close_to_fp64(device, randomise):
    layer = randomise(GraLoRALinear(64, 48, r=8, k=2, device=device, dtype=torch.bfloat16))
    x = torch.randn(33, 64, device=device, dtype=torch.bfloat16)
    exact = x.double() @ (layer.weight.double() + layer.delta_weight().double()).T
    exact = exact + layer.bias.double()
    error = (layer(x).double() - exact).norm() / exact.norm()
    assert 0 < error.item() < 1e-2


def test_autocast_gives_its_dtype(device, randomise):
    layer = randomise(GraLoRALinear(16, 8, r=4, k=2, device=device))
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        assert layer(torch.randn(3, 16, device=device)).dtype == torch.bfloat16


def test_autocast_gradients_stay_in_fp32(device, randomise):
    layer = randomise(GraLoRALinear(16, 8, r=4, k=2, hybrid_r=2, device=device))
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        y = layer(torch.randn(33, 16, device=device))
    y.float().square().sum().backward()
    for parameter in (p for p in layer.parameters() if p.requires_grad):
        assert parameter.grad.dtype == torch.float32
        assert not torch.equal(parameter.grad, parameter.grad.bfloat16().float())
