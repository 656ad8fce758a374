"""What the constructor builds: parameters, shapes, dtypes, devices, and the description."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from gralora.nn import GraLoRALinear

GRIDS = [
    pytest.param({"r": 8, "k": 2}, (2, 6, 8), (2, 8, 4), id="square-k2"),
    pytest.param({"r": 8, "k": 1}, (1, 12, 8), (1, 8, 8), id="k1"),
    pytest.param({"r": 8, "k": 4}, (4, 3, 8), (4, 8, 2), id="square-k4"),
    pytest.param({"r": 8, "k": (4, 2)}, (2, 6, 16), (4, 8, 2), id="k_out4-k_in2"),
    pytest.param({"r": 8, "k": (2, 4)}, (4, 3, 4), (2, 8, 4), id="k_out2-k_in4"),
    pytest.param({"r": 32, "k": 4}, (4, 3, 32), (4, 32, 2), id="sub-rank-above-block"),
]


@pytest.mark.parametrize(("options", "shape_A", "shape_B"), GRIDS)
def test_factor_shapes(options, shape_A, shape_B):
    layer = GraLoRALinear(12, 8, **options)
    assert tuple(layer.gralora_A["default"].shape) == shape_A
    assert tuple(layer.gralora_B["default"].shape) == shape_B


def test_hybrid_factor_shapes():
    layer = GraLoRALinear(12, 8, r=4, k=2, hybrid_r=3)
    assert tuple(layer.lora_A["default"].shape) == (3, 12)
    assert tuple(layer.lora_B["default"].shape) == (8, 3)


def test_no_hybrid_factors_without_hybrid_rank():
    layer = GraLoRALinear(12, 8, r=4, k=2)
    assert len(layer.lora_A) == 0
    assert len(layer.lora_B) == 0


def test_default_rank_and_grid():
    layer = GraLoRALinear(64, 64)
    assert tuple(layer.gralora_A["default"].shape) == (2, 32, 32)


def test_weight_and_bias_shapes():
    layer = GraLoRALinear(12, 8, r=4)
    assert tuple(layer.weight.shape) == (8, 12)
    assert tuple(layer.bias.shape) == (8,)


def test_without_bias():
    layer = GraLoRALinear(12, 8, r=4, bias=False)
    assert layer.bias is None


@pytest.mark.parametrize("hybrid_r", [0, 2], ids=["plain", "hybrid"])
def test_only_the_factors_are_trainable(hybrid_r):
    layer = GraLoRALinear(12, 8, r=4, hybrid_r=hybrid_r)
    trainable = {name for name, p in layer.named_parameters() if p.requires_grad}
    expected = {"gralora_A.default", "gralora_B.default"}
    if hybrid_r:
        expected |= {"lora_A.default", "lora_B.default"}
    assert trainable == expected


def test_is_a_module_with_named_features():
    layer = GraLoRALinear(12, 8, r=4)
    assert isinstance(layer, nn.Module)
    assert (layer.in_features, layer.out_features) == (12, 8)


def test_one_active_adapter_named_default():
    layer = GraLoRALinear(12, 8, r=4)
    assert list(layer.adapters) == ["default"]
    assert list(layer.active_adapters) == ["default"]


def test_specification_of_an_adapter_is_frozen():
    layer = GraLoRALinear(12, 8, r=4)
    spec = layer.adapters["default"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.r = 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtype_argument_sets_base_and_factors(dtype):
    layer = GraLoRALinear(12, 8, r=4, hybrid_r=2, dtype=dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype}


def test_device_argument(device):
    layer = GraLoRALinear(12, 8, r=4, hybrid_r=2, device=device)
    assert {p.device.type for p in layer.parameters()} == {torch.device(device).type}


def test_meta_device_argument_allocates_nothing():
    layer = GraLoRALinear(12, 8, r=4, hybrid_r=2, device="meta")
    assert all(p.is_meta for p in layer.parameters())


def test_default_device_context_is_followed():
    with torch.device("meta"):
        layer = GraLoRALinear(12, 8, r=4)
    assert all(p.is_meta for p in layer.parameters())


def test_default_dtype_is_followed():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        layer = GraLoRALinear(12, 8, r=4)
    finally:
        torch.set_default_dtype(before)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    "needle",
    ["in_features=12", "out_features=8", "bias=True", "default", "r=4", "hybrid_r=2"],
)
def test_extra_repr_tells(needle):
    layer = GraLoRALinear(12, 8, r=4, k=2, hybrid_r=2)
    assert needle in layer.extra_repr()


def test_repr_is_finite_in_length():
    layer = GraLoRALinear(12, 8, r=4, k=2)
    assert "GraLoRALinear" in repr(layer)
    assert len(repr(layer)) < 2000
