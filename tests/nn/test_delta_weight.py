"""ΔW of an adapter, as a matrix [out_features, in_features]."""

from __future__ import annotations

import pytest
import torch

from gralora import reference
from gralora.nn import GraLoRALinear

OPTIONS = [
    pytest.param({"r": 8, "k": 2}, id="k2"),
    pytest.param({"r": 8, "k": 1}, id="k1"),
    pytest.param({"r": 8, "k": (4, 2)}, id="k_out4-k_in2"),
    pytest.param({"r": 8, "k": (2, 4)}, id="k_out2-k_in4"),
    pytest.param({"r": 32, "k": 4}, id="sub-rank-above-block"),
    pytest.param({"r": 8, "k": 2, "hybrid_r": 3}, id="hybrid"),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_blocks_one_by_one(device, options, randomise, dense_update):
    layer = randomise(GraLoRALinear(12, 8, alpha=5, device=device, dtype=torch.float64, **options))
    expected = dense_update(layer, "default", 5 / (options["r"] + options.get("hybrid_r", 0)))
    torch.testing.assert_close(layer.delta_weight().detach().cpu(), expected)


@pytest.mark.parametrize("options", OPTIONS)
def test_agrees_with_the_oracle(device, options, randomise):
    layer = randomise(GraLoRALinear(12, 8, alpha=5, device=device, dtype=torch.float64, **options))
    hybrid = "hybrid_r" in options
    expected = reference.delta_weight(
        layer.gralora_A["default"],
        layer.gralora_B["default"],
        scaling=5 / (options["r"] + options.get("hybrid_r", 0)),
        lora_A=layer.lora_A["default"] if hybrid else None,
        lora_B=layer.lora_B["default"] if hybrid else None,
    )
    torch.testing.assert_close(layer.delta_weight(), expected)


def test_gradients_agree_with_the_oracle(randomise):
    layer = randomise(GraLoRALinear(12, 8, r=8, k=(2, 4), hybrid_r=3, dtype=torch.float64))
    A, B = layer.gralora_A["default"], layer.gralora_B["default"]
    lora_A, lora_B = layer.lora_A["default"], layer.lora_B["default"]
    out = torch.randn(8, 12, dtype=torch.float64)
    ours = torch.autograd.grad(layer.delta_weight(), [A, B, lora_A, lora_B], out)
    expected = reference.delta_weight(A, B, scaling=16 / 11, lora_A=lora_A, lora_B=lora_B)
    theirs = torch.autograd.grad(expected, [A, B, lora_A, lora_B], out)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_of_an_adapter_that_does_not_train_carries_no_gradient():
    layer = GraLoRALinear(12, 8, r=4, k=2)
    layer.add_adapter("other", r=4, k=2)
    assert layer.delta_weight("default").requires_grad
    assert not layer.delta_weight("other").requires_grad


def test_names_the_adapter(randomise, dense_update):
    layer = GraLoRALinear(12, 8, r=4, k=2, dtype=torch.float64)
    layer.add_adapter("other", r=8, k=4)
    randomise(layer)
    torch.testing.assert_close(
        layer.delta_weight("other").detach(), dense_update(layer, "other", 2.0)
    )


def test_rank_is_k_times_that_of_lora(randomise):
    layer = randomise(GraLoRALinear(64, 64, r=8, k=4, dtype=torch.float64))
    assert torch.linalg.matrix_rank(layer.delta_weight().detach()).item() == 4 * 8


def test_fresh_adapter_has_none():
    layer = GraLoRALinear(12, 8, r=4, k=2, hybrid_r=2)
    assert not layer.delta_weight().any()


def test_is_the_forward_of_the_identity(randomise):
    layer = randomise(GraLoRALinear(12, 8, r=4, k=2, bias=False, dtype=torch.float64))
    eye = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(layer(eye).T, layer.weight + layer.delta_weight())
