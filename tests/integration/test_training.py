"""Ordinary training loops: the loss falls, alone, under autocast and with a gradient scaler."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gralora.nn import GraLoRALinear

STEPS = 60


@pytest.fixture
def task(device):
    """A frozen layer, and targets that a changed weight would give."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(32, 16, device=device)
    x = torch.randn(256, 32, generator=generator).to(device)
    change = 0.2 * torch.randn(16, 32, generator=generator).to(device)
    with torch.no_grad():
        target = linear(x) + x @ change.T
    return linear, x, target


def train(layer, x, target, autocast=None, scaler=None, dtype=torch.float32):
    """First and last loss of a short run of Adam."""
    optimizer = torch.optim.Adam((p for p in layer.parameters() if p.requires_grad), lr=0.02)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast(
            x.device.type, dtype=autocast or torch.bfloat16, enabled=bool(autocast)
        ):
            y = layer(x.to(dtype))
        loss = (y.float() - target).square().mean()
        losses.append(loss.item())
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return losses[0], losses[-1]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"r": 16, "k": 4}, id="k4"),
        pytest.param({"r": 16, "k": 1}, id="lora"),
        pytest.param({"r": 8, "k": (2, 4), "hybrid_r": 4}, id="hybrid"),
        pytest.param({"r": 16, "k": 2, "dropout": 0.05}, id="dropout"),
        pytest.param({"r": 16, "k": 2, "use_rslora": True, "alpha": 8}, id="rslora"),
    ],
)
def test_loss_falls(task, options):
    linear, x, target = task
    first, last = train(GraLoRALinear.from_linear(linear, **options), x, target)
    assert last < 0.2 * first


def test_base_stays_as_it_was(task):
    linear, x, target = task
    before = linear.weight.detach().clone()
    train(GraLoRALinear.from_linear(linear, r=16, k=4), x, target)
    assert torch.equal(linear.weight, before)


def test_loss_falls_on_a_bf16_base(task):
    linear, x, target = task
    layer = GraLoRALinear.from_linear(linear.bfloat16(), r=16, k=4)
    first, last = train(layer, x, target, dtype=torch.bfloat16)
    assert last < 0.2 * first


def test_loss_falls_under_autocast(task):
    linear, x, target = task
    layer = GraLoRALinear.from_linear(linear, r=16, k=4)
    first, last = train(layer, x, target, autocast=torch.bfloat16)
    assert last < 0.2 * first


def test_loss_falls_with_a_gradient_scaler(task, device):
    linear, x, target = task
    layer = GraLoRALinear.from_linear(linear, r=16, k=4)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0)
    first, last = train(layer, x, target, autocast=torch.float16, scaler=scaler)
    assert last < 0.2 * first


def test_merged_layer_keeps_what_was_learned(task):
    linear, x, target = task
    layer = GraLoRALinear.from_linear(linear, r=16, k=4)
    train(layer, x, target)
    loss = (layer(x) - target).square().mean()
    layer.merge()
    torch.testing.assert_close((layer(x) - target).square().mean(), loss)


def test_inactive_adapter_does_not_learn(task):
    linear, x, target = task
    layer = GraLoRALinear.from_linear(linear, r=16, k=4)
    layer.add_adapter("other", r=16, k=4)
    train(layer, x, target)
    assert not layer.gralora_B["other"].any()
