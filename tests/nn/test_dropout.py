"""Dropout on the adapter's input: where it acts, how often, and one mask for both parts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gralora.nn import GraLoRALinear

WIDTH = 64


def window_on_the_mask(dropout, device, hybrid=False):
    """A layer whose output is exactly the dropped-out input: no base, ΔW = I."""
    layer = GraLoRALinear(
        WIDTH,
        WIDTH,
        r=WIDTH,
        k=1,
        alpha=2 * WIDTH if hybrid else WIDTH,
        hybrid_r=WIDTH if hybrid else 0,
        dropout=dropout,
        bias=False,
        device=device,
    )
    eye = torch.eye(WIDTH, device=device)
    with torch.no_grad():
        layer.weight.zero_()
        layer.gralora_A["default"].copy_(eye[None])
        layer.gralora_B["default"].copy_(eye[None])
        if hybrid:
            layer.lora_A["default"].copy_(eye)
            layer.lora_B["default"].copy_(-eye)
    return layer


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_of_dropped_elements(device, p):
    torch.manual_seed(0)
    y = window_on_the_mask(p, device)(torch.ones(512, WIDTH, device=device))
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.01)


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_kept_elements_are_scaled_up(device, p):
    y = window_on_the_mask(p, device)(torch.ones(64, WIDTH, device=device))
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)))


def test_mask_has_no_pattern_over_columns_and_rows(device):
    torch.manual_seed(1)
    y = window_on_the_mask(0.5, device)(torch.ones(1024, WIDTH, device=device))
    kept = (y != 0).float()
    assert (kept.mean(0) - 0.5).abs().max().item() < 0.1
    assert (kept.mean(1) - 0.5).abs().max().item() < 0.35


def test_everything_dropped_leaves_the_base(device, randomise):
    layer = randomise(GraLoRALinear(16, 8, r=4, k=2, dropout=1.0, device=device))
    x = torch.randn(5, 16, device=device)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_eval_drops_nothing(device, randomise):
    layer = randomise(GraLoRALinear(16, 8, r=4, k=2, dropout=0.5, device=device))
    plain = randomise(GraLoRALinear(16, 8, r=4, k=2, device=device))
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(5, 16, device=device)
    assert torch.equal(layer.eval()(x), plain(x))


def test_train_drops(device, randomise):
    layer = randomise(GraLoRALinear(16, 8, r=4, k=2, dropout=0.5, device=device))
    x = torch.randn(5, 16, device=device)
    dropped = layer(x)
    assert not torch.allclose(dropped, layer.eval()(x))


def test_base_sees_the_whole_input(device):
    layer = GraLoRALinear(16, 8, r=4, k=2, dropout=0.5, device=device)
    x = torch.randn(5, 16, device=device)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_both_parts_of_a_hybrid_see_one_mask(device):
    layer = window_on_the_mask(0.5, device, hybrid=True)
    x = torch.randn(128, WIDTH, device=device)
    assert not layer(x).any()


def test_same_seed_same_mask(device):
    layer = window_on_the_mask(0.5, device)
    x = torch.ones(8, WIDTH, device=device)
    torch.manual_seed(11)
    first = layer(x)
    torch.manual_seed(11)
    assert torch.equal(layer(x), first)


def test_next_call_draws_another_mask(device):
    layer = window_on_the_mask(0.5, device)
    x = torch.ones(8, WIDTH, device=device)
    assert not torch.equal(layer(x), layer(x))


def test_two_active_adapters_draw_two_masks(device):
    layer = window_on_the_mask(0.5, device)
    layer.add_adapter("minus", r=WIDTH, k=1, alpha=WIDTH, dropout=0.5)
    eye = torch.eye(WIDTH, device=device)
    with torch.no_grad():
        layer.gralora_A["minus"].copy_(eye[None])
        layer.gralora_B["minus"].copy_(-eye[None])
    layer.set_adapter(["default", "minus"])
    assert layer(torch.ones(8, WIDTH, device=device)).any()


@pytest.fixture
def second_window(device):
    """Two active adapters: the first has no update, the second is the window, with p = 0.5."""
    layer = window_on_the_mask(0.0, device)
    layer.add_adapter("second", r=WIDTH, k=1, alpha=WIDTH, dropout=0.5)
    with torch.no_grad():
        layer.gralora_A["second"].copy_(layer.gralora_A["default"])
        layer.gralora_B["second"].copy_(layer.gralora_B["default"])
        layer.gralora_B["default"].zero_()
    layer.set_adapter(["default", "second"])
    return layer


def test_second_active_adapter_drops(second_window, device):
    y = second_window(torch.ones(512, WIDTH, device=device))
    assert (y == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_second_active_adapter_drops_nothing_in_eval(second_window, device):
    y = second_window.eval()(torch.ones(8, WIDTH, device=device))
    assert torch.equal(y, torch.ones_like(y))


def test_without_dropout_the_generator_is_not_touched(device, randomise):
    layer = randomise(GraLoRALinear(16, 8, r=4, k=2, device=device))
    torch.manual_seed(5)
    expected = torch.rand(4, device=device)
    torch.manual_seed(5)
    layer(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).to(device))
    assert torch.equal(torch.rand(4, device=device), expected)


def test_backward_uses_the_mask_of_the_forward(device):
    layer = window_on_the_mask(0.5, device)
    x = torch.ones(16, WIDTH, device=device, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_factor_gradient_uses_the_mask_of_the_forward(device):
    layer = window_on_the_mask(0.5, device)
    y = layer(torch.ones(16, WIDTH, device=device))
    y.sum().backward()
    expected = y.detach().sum(0)[:, None].expand(WIDTH, WIDTH)
    torch.testing.assert_close(layer.gralora_A["default"].grad[0], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_mask_on_the_cpu_does_not_depend_on_threads(dtype):
    # Wide enough to be cut among threads, with a last group of four that is not full.
    x, rng_state = torch.randn(1_000_003, dtype=dtype).view(1, -1), torch.tensor([7, 11])
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(torch.ops.gralora.dropout(x, rng_state, p=0.3))
    finally:
        torch.set_num_threads(before)
    assert 0.29 < (results[0] == 0).double().mean() < 0.31
    assert all(torch.equal(results[0], result) for result in results[1:])
