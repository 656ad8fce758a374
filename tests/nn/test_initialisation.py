"""How adapters start: A Kaiming-uniform on the block's width, B zero, so nothing changes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gralora.nn import GraLoRALinear

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("hybrid_r", [0, 3], ids=["plain", "hybrid"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fresh_adapter_changes_no_bit(device, dtype, bias, hybrid_r):
    torch.manual_seed(0)
    layer = GraLoRALinear(
        48, 32, r=8, k=2, hybrid_r=hybrid_r, bias=bias, device=device, dtype=dtype
    )
    x = torch.randn(3, 5, 48, device=device).to(dtype)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_fresh_adapter_changes_no_bit_of_the_merged_weight(device):
    layer = GraLoRALinear(48, 32, r=8, k=2, hybrid_r=3, device=device, dtype=torch.bfloat16)
    before = layer.weight.detach().clone()
    layer.merge()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("k", [1, 2, 4, (2, 4), (4, 2)], ids=str)
def test_first_factor_lies_within_the_kaiming_bound_of_its_block(k, kaiming_bound):
    layer = GraLoRALinear(64, 64, r=32, k=k)
    k_in = k if isinstance(k, int) else k[1]
    bound = kaiming_bound(64 // k_in)
    largest = layer.gralora_A["default"].detach().abs().max().item()
    assert 0.98 * bound < largest <= bound


def test_first_factor_has_the_variance_of_a_uniform_distribution(kaiming_bound):
    torch.manual_seed(0)
    layer = GraLoRALinear(256, 64, r=64, k=4)
    A = layer.gralora_A["default"].detach().double()
    assert A.var().item() == pytest.approx(kaiming_bound(64) ** 2 / 3, rel=0.05)
    assert abs(A.mean().item()) < 0.02 * kaiming_bound(64)


def test_hybrid_first_factor_lies_within_the_bound_of_the_whole_input(kaiming_bound):
    layer = GraLoRALinear(64, 64, r=32, k=4, hybrid_r=32)
    bound = kaiming_bound(64)
    largest = layer.lora_A["default"].detach().abs().max().item()
    assert 0.98 * bound < largest <= bound


@pytest.mark.parametrize("factor", ["gralora_B", "lora_B"])
def test_second_factor_is_zero(factor):
    layer = GraLoRALinear(16, 8, r=4, k=2, hybrid_r=2)
    assert not getattr(layer, factor)["default"].any()


def test_blocks_of_the_first_factor_differ():
    layer = GraLoRALinear(16, 8, r=4, k=2)
    A = layer.gralora_A["default"]
    assert not torch.equal(A[0], A[1])


def test_same_seed_gives_the_same_layer():
    layers = []
    for _ in range(2):
        torch.manual_seed(7)
        layers.append(GraLoRALinear(16, 8, r=4, k=2, hybrid_r=2))
    for key, value in layers[0].state_dict().items():
        assert torch.equal(value, layers[1].state_dict()[key]), key


def test_reset_parameters_restores_a_fresh_adapter(randomise):
    layer = randomise(GraLoRALinear(16, 8, r=4, k=2, hybrid_r=2))
    layer.reset_parameters()
    assert not layer.gralora_B["default"].any()
    assert not layer.lora_B["default"].any()
    assert layer.gralora_A["default"].any()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_meta_layer_becomes_real(device, bias, kaiming_bound):
    layer = GraLoRALinear(64, 32, r=16, k=2, hybrid_r=4, bias=bias, device="meta")
    layer.to_empty(device=device)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(float("nan"))
    layer.reset_parameters()
    for name, parameter in layer.named_parameters():
        assert parameter.isfinite().all(), name
    assert not layer.gralora_B["default"].any()
    assert layer.gralora_A["default"].abs().max().item() <= kaiming_bound(32)


def test_meta_layer_keeps_requires_grad_when_it_becomes_real():
    layer = GraLoRALinear(16, 8, r=4, device="meta")
    before = {name: p.requires_grad for name, p in layer.named_parameters()}
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert {name: p.requires_grad for name, p in layer.named_parameters()} == before


def test_meta_layer_takes_a_state_dict_by_assignment(randomise):
    source = randomise(GraLoRALinear(16, 8, r=4, hybrid_r=2))
    layer = GraLoRALinear(16, 8, r=4, hybrid_r=2, device="meta")
    layer.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(3, 16)
    assert torch.equal(layer(x), source(x))


def test_meta_forward_gives_the_shape():
    layer = GraLoRALinear(16, 8, r=4, hybrid_r=2, device="meta")
    assert tuple(layer(torch.empty(3, 5, 16, device="meta")).shape) == (3, 5, 8)


def test_the_weight_starts_as_a_linear_layer_does():
    torch.manual_seed(3)
    linear = torch.nn.Linear(16, 8)
    torch.manual_seed(3)
    layer = GraLoRALinear(16, 8, r=4)
    torch.testing.assert_close(layer.weight.detach(), linear.weight.detach())
    torch.testing.assert_close(layer.bias.detach(), linear.bias.detach())
