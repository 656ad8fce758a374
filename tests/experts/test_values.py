"""Outputs and gradients of adapted experts are those of each expert alone."""

from __future__ import annotations

import pytest
import torch
from expert_models import FAMILIES, by_hand, routed, wrapped
from torch import Tensor

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 0.02, torch.float16: 3e-3}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
GRIDS = pytest.mark.parametrize("k", [1, 2, (4, 2), (1, 4)], ids=lambda k: f"k={k}")
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.detach().double().cpu() - want.detach()).norm() / want.detach().norm())


def check(family: str, dtype: torch.dtype, device: torch.device, **adapter: object) -> None:
    module = wrapped(family, **adapter).to(device=device, dtype=dtype)
    index, shares = (tensor.to(device) for tensor in routed(len(module.gate_up_proj.weight)))
    x = torch.randn(len(index), 32, device=device).to(dtype).requires_grad_()
    shares = shares.to(dtype).requires_grad_()
    dy = torch.randn(len(index), 32, device=device).to(dtype)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    inputs = {"x": x, "shares": shares} | trained
    y = module(x, index, shares)
    got = dict(zip(inputs, torch.autograd.grad(y, inputs.values(), dy), strict=True))

    exact = {name: value.detach().cpu().double() for name, value in module.state_dict().items()}
    leaves = {name: exact[name].requires_grad_() for name in trained}
    leaves |= {
        name: value.detach().cpu().double().requires_grad_()
        for name, value in (("x", x), ("shares", shares))
    }
    want = by_hand(module, leaves["x"], index.cpu(), leaves["shares"], exact | leaves)
    assert relative(y, want) < TOLERANCE[dtype]
    gradients = torch.autograd.grad(want, [leaves[name] for name in inputs], dy.cpu().double())
    for name, gradient in zip(inputs, gradients, strict=True):
        assert got[name].dtype == inputs[name].dtype, name
        assert relative(got[name], gradient) < TOLERANCE[dtype], name


@EACH_FAMILY
@DTYPES
@GRIDS
def test_forward_and_backward(family: str, dtype: torch.dtype, k, device: torch.device):
    check(family, dtype, device, r=8, k=k, adapter_dtype=dtype)


@GRIDS
def test_hybrid(k, device: torch.device):
    check("mixtral", torch.float64, device, r=8, k=k, hybrid_r=3, adapter_dtype=torch.float64)


@pytest.mark.parametrize("r", [2, 3, 6, 10])
def test_ranks_that_fill_no_whole_step_of_memory(r: int, device: torch.device):
    check("mixtral", torch.bfloat16, device, r=r, k=1, adapter_dtype=torch.bfloat16)


def test_master_weights_in_float32(device: torch.device):
    check("mixtral", torch.bfloat16, device, r=8, k=2, adapter_dtype=torch.bfloat16)
    module = wrapped("mixtral", r=8, k=2).to(device)
    module.base_layer.to(torch.bfloat16)
    index, shares = (tensor.to(device) for tensor in routed(4))
    y = module(torch.randn(len(index), 32, device=device).to(torch.bfloat16), index, shares)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert module.down_proj.gralora_A["default"].grad.dtype == torch.float32


def test_no_tokens(device: torch.device):
    module = wrapped("mixtral", r=8, k=2).to(device)
    index = torch.zeros(0, 2, dtype=torch.long, device=device)
    y = module(torch.zeros(0, 32, device=device), index, torch.zeros(0, 2, device=device))
    y.sum().backward()
    assert y.shape == (0, 32)
    assert not module.gate_up_proj.gralora_A["default"].grad.any()


def test_an_expert_without_tokens_gets_gradients_of_zero(device: torch.device):
    module = wrapped("mixtral", r=8, k=2).to(device)
    index, shares = (tensor.to(device) for tensor in routed(4))
    module(torch.randn(len(index), 32, device=device), index, shares).sum().backward()
    for weights in module.weights.values():
        for factors in (weights.gralora_A, weights.gralora_B):
            gradient = factors["default"].grad
            assert not gradient[3].any()
            assert all(gradient[expert].any() for expert in range(3))


def test_equal_calls_give_equal_bits(device: torch.device):
    module = wrapped("qwen-moe", r=8, k=2).to(device=device, dtype=torch.bfloat16)
    index, shares = (tensor.to(device) for tensor in routed(8, rows=200))
    x = torch.randn(len(index), 32, device=device, dtype=torch.bfloat16, requires_grad=True)
    inputs = [x, *(p for p in module.parameters() if p.requires_grad)]
    runs = []
    for _ in range(3):
        y = module(x, index, shares)
        runs.append([y, *torch.autograd.grad(y.float().square().sum(), inputs)])
    assert all(
        torch.equal(one, other) for run in runs[1:] for one, other in zip(runs[0], run, strict=True)
    )


def test_dropout_acts_on_the_adapters_alone_and_in_training_alone():
    module = wrapped("mixtral", r=8, k=2, dropout=1.0)
    index, shares = routed(4)
    x = torch.randn(len(index), 32)
    frozen = module.base_layer(x, index, shares)
    assert not torch.allclose(module.eval()(x, index, shares), frozen, atol=1e-3)
    torch.testing.assert_close(module.train()(x, index, shares), frozen)
