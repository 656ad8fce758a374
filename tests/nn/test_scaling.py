"""The scale of an adapter: alpha over the rank, or over its root for rsLoRA."""

from __future__ import annotations

import math

import pytest
import torch

from gralora.nn import GraLoRALinear

CASES = [
    pytest.param({"r": 8}, 2.0, id="alpha-none"),
    pytest.param({"r": 8, "alpha": 12}, 12 / 8, id="alpha-int"),
    pytest.param({"r": 8, "alpha": 2.5}, 2.5 / 8, id="alpha-float"),
    pytest.param({"r": 8, "hybrid_r": 4}, 16 / 12, id="hybrid-alpha-none"),
    pytest.param({"r": 8, "hybrid_r": 4, "alpha": 6}, 0.5, id="hybrid"),
    pytest.param({"r": 8, "alpha": 6, "use_rslora": True}, 6 / math.sqrt(8), id="rslora"),
    pytest.param(
        {"r": 8, "hybrid_r": 4, "alpha": 6, "use_rslora": True},
        6 / math.sqrt(12),
        id="rslora-hybrid",
    ),
    pytest.param({"r": 8, "k": (2, 4), "alpha": 12}, 12 / 8, id="rectangular"),
    pytest.param({"r": 8, "k": (4, 2), "alpha": 12}, 12 / 8, id="rectangular-tall"),
    pytest.param({"r": 8, "alpha": -4}, -0.5, id="negative-alpha"),
]


@pytest.mark.parametrize(("options", "scaling"), CASES)
def test_delta_weight_carries_the_scale(options, scaling, randomise, dense_update):
    layer = randomise(GraLoRALinear(12, 8, dtype=torch.float64, **options))
    expected = dense_update(layer, "default", scaling)
    torch.testing.assert_close(layer.delta_weight().detach(), expected)


@pytest.mark.parametrize(("options", "scaling"), CASES)
def test_forward_carries_the_scale(options, scaling, randomise, dense_update):
    layer = randomise(GraLoRALinear(12, 8, dtype=torch.float64, **options))
    x = torch.randn(5, 12, dtype=torch.float64)
    expected = x @ (layer.weight + dense_update(layer, "default", scaling)).T + layer.bias
    torch.testing.assert_close(layer(x).detach(), expected)
