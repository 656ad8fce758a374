"""Captured in a CUDA graph, the layer computes, learns and drops as it does outside."""

from __future__ import annotations

import torch

from gralora.nn import GraLoRALinear


def test_graphed_step_agrees_with_eager(cuda, randomise):
    layer = randomise(GraLoRALinear(64, 96, r=8, k=2, hybrid_r=2, device=cuda))
    x = torch.randn(32, 64, device=cuda, requires_grad=True)
    expected = layer(x)
    wanted = torch.autograd.grad(expected.square().sum(), [x, layer.gralora_A["default"]])
    # A live graph of another stream would tie that stream to the capture.
    expected = expected.detach()
    graphed = torch.cuda.make_graphed_callables(layer, (x.detach().clone().requires_grad_(True),))
    y = graphed(x)
    actual = torch.autograd.grad(y.square().sum(), [x, layer.gralora_A["default"]])
    torch.testing.assert_close(y, expected)
    for our, their in zip(actual, wanted, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


def test_each_replay_draws_a_new_mask(cuda, randomise):
    layer = randomise(GraLoRALinear(64, 96, r=8, k=2, dropout=0.5, device=cuda))
    x = torch.randn(32, 64, device=cuda)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        layer(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        y = layer(x)
    graph.replay()
    first = y.clone()
    graph.replay()
    assert not torch.equal(y, first)


def test_replayed_backward_uses_the_mask_of_its_forward(cuda):
    layer = GraLoRALinear(64, 64, r=64, k=1, alpha=64, dropout=0.5, bias=False, device=cuda)
    with torch.no_grad():
        layer.weight.zero_()
        layer.gralora_A["default"].copy_(torch.eye(64)[None])
        layer.gralora_B["default"].copy_(torch.eye(64)[None])
    sample = torch.ones(32, 64, device=cuda, requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(layer, (sample,))
    for _ in range(3):
        x = torch.ones(32, 64, device=cuda, requires_grad=True)
        y = graphed(x)
        y.sum().backward()
        torch.testing.assert_close(x.grad, y.detach())
