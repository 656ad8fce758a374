"""Experts without tokens, wherever they stand, against a loop over experts in float64."""

from __future__ import annotations

import pytest
import torch
from expert_models import by_hand, wrapped
from torch import Tensor

from gralora.nn.experts.products import grouped_product

SIZES = {
    "first": [0, 5, 3, 4],
    "middle": [4, 0, 0, 5],
    "last": [3, 6, 2, 0],
    "first, middle and last": [0, 7, 0, 0],
    "all": [0, 0, 0, 0],
}
EACH_SIZES = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
# The adapters' latents are rounded as well as their outputs, and the experts' inner rows.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 0.02, torch.float16: 3e-3}
EACH_DTYPE = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16", "fp16"])


def check(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    got, want = got.detach().double().cpu(), want.detach()
    assert got.shape == want.shape
    assert (got - want).norm() <= TOLERANCE[dtype] * want.norm()


@EACH_SIZES
@EACH_DTYPE
@pytest.mark.parametrize("width", [16, 10, 3], ids=lambda width: f"width={width}")
def test_the_product(sizes: list[int], dtype: torch.dtype, width: int, device: torch.device):
    x = torch.randn(sum(sizes), width).to(device, dtype).requires_grad_()
    weight = torch.randn(len(sizes), width, 24).to(device, dtype).requires_grad_()
    ends = torch.tensor(sizes, device=device).cumsum(0).int()
    dy = torch.randn(sum(sizes), 24).to(device, dtype)
    y = grouped_product(x, weight, ends)
    dx, dweight = torch.autograd.grad(y, (x, weight), dy)

    leaves = [t.detach().cpu().double().requires_grad_() for t in (x, weight)]
    rows, first = [], 0
    for group, size in enumerate(sizes):
        rows += [row @ leaves[1][group] for row in leaves[0][first : first + size]]
        first += size
    want = torch.stack(rows) if rows else torch.zeros(0, 24, dtype=torch.float64)
    gradients = [torch.zeros_like(leaf) for leaf in leaves]
    if rows:
        gradients = torch.autograd.grad(want, leaves, dy.cpu().double())
    check(y, want, dtype)
    check(dx, gradients[0], dtype)
    check(dweight, gradients[1], dtype)
    for group, size in enumerate(sizes):
        assert bool(dweight[group].any()) == bool(size)


@EACH_SIZES
@EACH_DTYPE
@pytest.mark.parametrize("k", [1, 2], ids=["k=1", "k=2"])
def test_adapted_experts(sizes: list[int], dtype: torch.dtype, k: int, device: torch.device):
    module = wrapped("mixtral", r=8, k=k, hybrid_r=2, adapter_dtype=dtype).to(device, dtype)
    chosen = torch.repeat_interleave(torch.tensor(sizes))
    index = chosen[torch.randperm(len(chosen))].unsqueeze(1)
    x = torch.randn(len(index), 32).to(device, dtype).requires_grad_()
    shares = torch.rand(len(index), 1).to(device, dtype).requires_grad_()
    dy = torch.randn(len(index), 32).to(device, dtype)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    inputs = {"x": x, "shares": shares} | trained
    y = module(x, index.to(device), shares)
    got = dict(zip(inputs, torch.autograd.grad(y, inputs.values(), dy), strict=True))

    exact = {name: value.detach().cpu().double() for name, value in module.state_dict().items()}
    leaves = {name: value.detach().cpu().double() for name, value in inputs.items()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    wanted = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    want = torch.zeros(0, 32, dtype=torch.float64)
    if len(index):
        want = by_hand(module, leaves["x"], index, leaves["shares"], exact | leaves)
        found = torch.autograd.grad(want, leaves.values(), dy.cpu().double())
        wanted = dict(zip(leaves, found, strict=True))
    check(y, want, dtype)
    for name, gradient in wanted.items():
        check(got[name], gradient, dtype)
    for name in trained:
        for expert, size in enumerate(sizes):
            assert bool(got[name][expert].any()) == bool(size), name


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] not in (9, 10),
    reason="needs a GPU of compute capability 9.x or 10.x",
)
def test_in_bfloat16_the_host_does_not_wait():
    device = torch.device("cuda")
    module = wrapped("mixtral", r=8, k=2).to(device)
    module.base_layer.to(torch.bfloat16)
    index = torch.tensor([[0, 3], [3, 4], [0, 4]], device=device)
    x = torch.randn(3, 32, device=device, dtype=torch.bfloat16, requires_grad=True)
    shares = torch.rand(3, 2, device=device, dtype=torch.bfloat16)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(x, index, shares).backward(torch.ones_like(x))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.grad.any()
