"""Autocast: factors are cast, experts are not."""

from __future__ import annotations

import pytest
import torch
from expert_models import routed, wrapped
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from gralora.nn import GraLoRAExperts

HALVES = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


class _Allocations(TorchDispatchMode):
    """Elements of each new tensor, by the operator that made it."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.sizes: list[tuple[int, str]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.known:
                self.sizes.append((storage.nbytes() // tensor.element_size(), str(function)))
        return result


def run(module, half: torch.dtype | None, x: Tensor, index: Tensor, shares: Tensor) -> list[Tensor]:
    trained = [p for p in module.parameters() if p.requires_grad]
    with torch.autocast(x.device.type, half, enabled=half is not None):
        y = module(x, index, shares)
    return [y, *torch.autograd.grad(y.float().square().sum(), [x, *trained])]


def inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    index, shares = (tensor.to(device) for tensor in routed(4))
    return torch.randn(len(index), 32, device=device, requires_grad=True), index, shares


def relative(got: Tensor, want: Tensor) -> float:
    return float(((got - want).norm() / want.norm()).detach())


@HALVES
@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_no_call_makes_a_tensor_as_large_as_the_experts(
    half: torch.dtype, kept: str, device: torch.device
):
    module = wrapped("mixtral", r=2, k=2).to(device)
    module.base_layer.to(getattr(torch, kept))
    arguments = inputs(device)
    smallest = min(weights.weight.numel() for weights in module.weights.values())
    with _Allocations(*module.base_layer.parameters()) as allocations:
        run(module, half, *arguments)
    assert max(allocations.sizes) < (smallest, "")


@HALVES
def test_the_backward_keeps_no_cast_experts(half: torch.dtype, device: torch.device):
    module = wrapped("mixtral", r=2, k=2).to(device)
    kept: list[Tensor] = []
    arguments = inputs(device)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run(module, half, *arguments)
    own = {p.untyped_storage().data_ptr() for p in module.base_layer.parameters()}
    assert own <= {tensor.untyped_storage().data_ptr() for tensor in kept}
    others = [t for t in kept if t.untyped_storage().data_ptr() not in own]
    assert max(t.numel() for t in others) < module.down_proj.weight.numel()


@HALVES
def test_the_dtype_is_that_of_transformers_grouped_experts(half: torch.dtype, device: torch.device):
    module = wrapped("mixtral", r=8, k=2).to(device)
    module.base_layer.config._experts_implementation = "grouped_mm"
    x, index, shares = inputs(device)
    for weights in module.weights.values():
        torch.nn.init.zeros_(weights.gralora_B["default"])
    with torch.no_grad(), torch.autocast(device.type, half):
        got, want = module(x, index, shares), module.base_layer(x, index, shares)
    assert got.dtype == want.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@HALVES
def test_factors_are_rounded_to_autocasts_dtype(half: torch.dtype, device: torch.device):
    module = wrapped("mixtral", r=8, k=2, hybrid_r=2).to(device)
    arguments = inputs(device)
    exact, rounded = run(module, None, *arguments), run(module, half, *arguments)
    for got, want in zip(rounded, exact, strict=True):
        assert got.dtype == torch.float32
        assert 1e-5 < relative(got, want) < 0.05
    factors = module.down_proj.gralora_A["default"]
    with torch.no_grad():
        factors.copy_(factors.to(half))
    again = run(module, half, *arguments)
    assert torch.equal(again[0], rounded[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_takes_no_memory_for_cast_experts():
    device = torch.device("cuda")
    sizes = MixtralConfig(hidden_size=256, intermediate_size=512, num_local_experts=8)
    base = MixtralExperts(sizes)
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    module = GraLoRAExperts(base)
    for weights in module.weights.values():
        weights.add_adapter("default", r=2, k=2)
        weights.set_adapter("default")
    module.to(device)
    index, shares = (tensor.to(device) for tensor in routed(8))
    x = torch.randn(len(index), 256, device=device, requires_grad=True)
    run(module, torch.bfloat16, x, index, shares)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(module, torch.bfloat16, x, index, shares)
    assert torch.cuda.max_memory_allocated() - before < 2 * base.down_proj.numel()
