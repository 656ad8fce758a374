"""``from_linear``: the layer that adopts an existing linear layer's parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gralora.nn import GraLoRALinear


def test_weight_is_the_very_same_object():
    linear = nn.Linear(12, 8)
    layer = GraLoRALinear.from_linear(linear, r=4)
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias


def test_weight_and_bias_become_frozen():
    linear = nn.Linear(12, 8)
    layer = GraLoRALinear.from_linear(linear, r=4)
    assert not layer.weight.requires_grad
    assert not layer.bias.requires_grad


def test_linear_without_bias():
    layer = GraLoRALinear.from_linear(nn.Linear(12, 8, bias=False), r=4)
    assert layer.bias is None
    assert "bias" not in layer.state_dict()


def test_exactly_one_adapter_named_default():
    layer = GraLoRALinear.from_linear(nn.Linear(12, 8), r=4)
    assert list(layer.adapters) == ["default"]


def test_fresh_layer_computes_what_the_linear_layer_does(device):
    linear = nn.Linear(12, 8, device=device)
    layer = GraLoRALinear.from_linear(linear, r=4, hybrid_r=2)
    x = torch.randn(5, 12, device=device)
    assert torch.equal(layer(x), linear(x))


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_training_mode_is_taken_over(mode):
    linear = nn.Linear(12, 8).train(mode)
    assert GraLoRALinear.from_linear(linear, r=4).training is mode


def test_factors_lie_where_the_weight_lies(device):
    layer = GraLoRALinear.from_linear(nn.Linear(12, 8, device=device), r=4, hybrid_r=2)
    assert {p.device for p in layer.parameters()} == {layer.weight.device}


def test_factors_follow_the_weight_not_the_default_device():
    linear = nn.Linear(12, 8)
    with torch.device("meta"):
        layer = GraLoRALinear.from_linear(linear, r=4)
    assert not any(p.is_meta for p in layer.parameters())


def test_options_reach_the_adapter(randomise, dense_update):
    linear = nn.Linear(12, 8, dtype=torch.float64)
    layer = GraLoRALinear.from_linear(linear, r=8, k=(2, 4), alpha=3, hybrid_r=1, use_rslora=True)
    randomise(layer)
    expected = dense_update(layer, "default", 3 / (8 + 1) ** 0.5)
    torch.testing.assert_close(layer.delta_weight().detach(), expected)


def test_meta_linear_gives_a_meta_layer():
    layer = GraLoRALinear.from_linear(nn.Linear(12, 8, device="meta"), r=4)
    assert all(p.is_meta for p in layer.parameters())


def test_subclass_of_linear_is_accepted():
    class Projection(nn.Linear):
        """A linear layer of a model's own."""

    linear = Projection(12, 8)
    assert GraLoRALinear.from_linear(linear, r=4).weight is linear.weight


def test_subclass_with_a_forward_of_its_own_is_refused():
    class Doubled(nn.Linear):
        """A linear layer that computes something else."""

        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(TypeError, match=r"Doubled"):
        GraLoRALinear.from_linear(Doubled(12, 8), r=4)
