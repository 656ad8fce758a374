"""Faults of PEFT's own layers that an accelerated layer does not have."""

from __future__ import annotations

import pytest
import torch
from accelerate_models import CONFIGS, gralora, layer_of, network, normal
from torch import nn

from gralora.integrations.peft import accelerate, report

SHAPES = {
    "1-D": (12,),
    "2-D": (3, 12),
    "4-D": (2, 3, 2, 12),
    "5-D": (2, 1, 3, 2, 12),
    "no rows": (0, 12),
    "no tokens": (2, 0, 12),
    "no images": (0, 2, 2, 12),
}


class Kept(nn.Linear):
    """A base layer that keeps its output, and derives it by a function that saves it."""

    def forward(self, x):
        self.kept = super().forward(x).exp()
        return self.kept


def expected_output(layer, x):
    """Base layer plus the merged difference, by PEFT's own weight difference."""
    return layer.base_layer(x) + x @ layer.get_delta_weight("default").T


@pytest.mark.parametrize("way", ["fused", "beside"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_input_of_any_shape(kind, shape, way):
    model = accelerate(network(CONFIGS[kind], dtype=torch.float64))
    if way == "beside":
        layer_of(model).base_layer.register_forward_hook(lambda *_: None)
    assert [row.way for row in report(model)] == [way]
    x = normal(*shape, dtype=torch.float64).requires_grad_()
    y = model(x)
    assert y.shape == (*shape[:-1], 8)
    torch.testing.assert_close(y, expected_output(layer_of(model), x))
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_input_of_any_shape_where_gralora_is_computed_by_peft(shape):
    model = accelerate(network(gralora, dtype=torch.float64)).eval()
    # Not known to the operators, and silent outside of training.
    layer_of(model).gralora_dropout["default"] = nn.AlphaDropout(0.5).eval()
    assert [row.way for row in report(model)] == ["peft"]
    x = normal(*shape, dtype=torch.float64).requires_grad_()
    y = model(x)
    assert y.shape == (*shape[:-1], 8)
    torch.testing.assert_close(y, expected_output(layer_of(model), x))
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("shape", [(4, 12), (4, 3, 12), (4, 2, 3, 12), (4, 2, 2, 3, 12)], ids=str)
def test_rows_of_any_shape_under_vmap(shape):
    model = accelerate(network(gralora, dtype=torch.float64)).requires_grad_(False)
    x = normal(*shape, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(model)(x), expected_output(layer_of(model), x))


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_base_layer_s_output_is_not_written_to(kind):
    model = accelerate(network(CONFIGS[kind], Kept(12, 8)))
    layer = layer_of(model)
    x = normal(3, 12).requires_grad_()
    y = model(x)
    torch.testing.assert_close(layer.base_layer.kept, layer.base_layer(x))
    assert not torch.allclose(y, layer.base_layer.kept)
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("state", ["active", "disabled", "merged", "hooked"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_output_dtype_under_autocast_is_the_base_layer_s(kind, state):
    model = accelerate(network(CONFIGS[kind]))
    layer = layer_of(model)
    if state == "disabled":
        layer.enable_adapters(False)
    elif state == "merged":
        layer.merge()
    elif state == "hooked":
        layer.base_layer.register_forward_hook(lambda *_: None)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(normal(3, 12)).dtype is torch.bfloat16


def test_a_hybrid_draws_one_dropout_mask():
    model = accelerate(
        network(
            gralora, nn.Linear(8, 8), r=8, hybrid_r=8, gralora_k=1, alpha=16, gralora_dropout=0.5
        )
    ).train()
    layer = layer_of(model)
    # Both parts are the identity, the plain one with the other sign: under one mask they cancel.
    identity = torch.eye(8)
    with torch.no_grad():
        layer.gralora_A["default"].copy_(identity[None])
        layer.gralora_B["default"].copy_(identity[None])
        layer.gralora_A_general["default"].weight.copy_(identity)
        layer.gralora_B_general["default"].weight.copy_(-identity)
    x = normal(50, 8)
    torch.testing.assert_close(model(x), layer.base_layer(x))


def test_the_mask_of_a_hybrid_is_drawn():
    model = accelerate(network(gralora, gralora_dropout=0.5)).train()
    x = normal(50, 12)
    assert not torch.allclose(model(x), model(x))
