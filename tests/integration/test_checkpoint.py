"""Gradient checkpointing gives the gradients that a plain backward gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gralora.nn import GraLoRALinear

FORMS = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])


@pytest.fixture(params=[0.0, 0.4], ids=["no-dropout", "dropout"])
def block(request, device, randomise):
    """Two adapted layers with a nonlinearity between them."""
    return randomise(
        nn.Sequential(
            GraLoRALinear(16, 24, r=8, k=2, dropout=request.param, device=device),
            nn.GELU(),
            GraLoRALinear(24, 16, r=8, k=4, hybrid_r=2, dropout=request.param, device=device),
        )
    )


def gradients(block, x, function):
    """Output, and gradients of the input and the factors, under a fixed seed."""
    x = x.detach().clone().requires_grad_(True)
    block.zero_grad()
    torch.manual_seed(4)
    y = function(x)
    y.square().sum().backward()
    named = {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **named}


@FORMS
def test_gradients_are_the_same(block, device, reentrant):
    x = torch.randn(5, 16, device=device)
    plain = gradients(block, x, block)
    saved = gradients(block, x, lambda x: checkpoint(block, x, use_reentrant=reentrant))
    assert saved.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(saved[name], value), name


@FORMS
def test_gradients_are_the_same_under_autocast(block, device, reentrant):
    x = torch.randn(5, 16, device=device)

    def cast(function):
        def run(x):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                return function(x)

        return run

    plain = gradients(block, x, cast(block))
    saved = gradients(block, x, cast(lambda x: checkpoint(block, x, use_reentrant=reentrant)))
    for name, value in plain.items():
        assert torch.equal(saved[name], value), name


def test_nothing_but_the_input_is_saved(block, device):
    sizes = []
    x = torch.randn(64, 16, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.shape) or t, lambda t: t
    ):
        checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
    assert (2, 64, 8) not in [tuple(size) for size in sizes]
