"""GraLoRALinear.without_adapters: a layer taken over before it has any adapter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gralora.nn import GraLoRALinear


def test_is_the_linear_layer_it_took_over():
    linear = nn.Linear(16, 8)
    layer = GraLoRALinear.without_adapters(linear)
    x = torch.randn(5, 16)
    assert torch.equal(layer(x), linear(x))
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert layer.state_dict().keys() == linear.state_dict().keys()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_has_the_mode_of_the_linear_layer(training):
    assert GraLoRALinear.without_adapters(nn.Linear(8, 8).train(training)).training is training


def test_gets_an_adapter_of_any_name():
    layer = GraLoRALinear.without_adapters(nn.Linear(16, 8))
    layer.add_adapter("poetry", r=4)
    layer.set_adapter("poetry")
    assert list(layer.adapters) == ["poetry"]
    assert layer.gralora_B["poetry"].requires_grad


def test_refuses_what_is_no_linear_layer():
    text = r"^GraLoRALinear\.without_adapters: needs a torch\.nn\.Linear .* got .*\.Conv2d"
    with pytest.raises(TypeError, match=text):
        GraLoRALinear.without_adapters(nn.Conv2d(1, 1, 1))
