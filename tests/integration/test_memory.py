"""What the layer keeps for its backward: x, H and the parameters, nothing else."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from gralora.nn import GraLoRALinear

T, N, M = 37, 48, 96
RNG_STATE_BYTES = 16
LAYERS = [
    pytest.param({"r": 8, "k": 2}, id="k2"),
    pytest.param({"r": 12, "k": 4}, id="k4-padded"),
    pytest.param({"r": 8, "k": (2, 4)}, id="rectangular"),
    pytest.param({"r": 8, "k": 2, "hybrid_r": 3}, id="hybrid"),
    pytest.param({"r": 8, "k": 2, "dropout": 0.5}, id="dropout"),
]


def saved_bytes(layer, x):
    """Bytes of the storages that a forward keeps, parameters apart."""
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    total = sum(storage.nbytes() for storage in kept.values())
    del y
    return total


def padded(width):
    """A row of the latent, rounded up to 8 elements."""
    return (width + 7) // 8 * 8


def latent_elements(layer):
    """Elements of H [k_out, T, k_in*s], and of the plain part's [T, r0]."""
    k_out, width, _ = layer.gralora_B["default"].shape
    elements = k_out * T * padded(width)
    if len(layer.lora_A):
        elements += T * padded(layer.lora_A["default"].shape[0])
    return elements


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", LAYERS)
def test_only_x_and_the_latent_are_kept(device, options, dtype, randomise):
    layer = randomise(GraLoRALinear(N, M, device=device, dtype=dtype, **options))
    x = torch.randn(T, N, device=device, dtype=dtype, requires_grad=True)
    budget = (x.numel() + latent_elements(layer)) * x.element_size() + RNG_STATE_BYTES
    kept = saved_bytes(layer, x)
    assert x.nbytes < kept <= budget


@pytest.mark.parametrize("options", LAYERS)
def test_under_autocast_x_is_kept_in_its_dtype(device, options, randomise):
    layer = randomise(GraLoRALinear(N, M, device=device, **options))
    layer.weight.data = layer.weight.data.bfloat16()
    layer.bias.data = layer.bias.data.bfloat16()
    x = torch.randn(T, N, device=device, requires_grad=True)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        kept = saved_bytes(layer, x)
    assert 0 < kept <= (x.numel() + latent_elements(layer)) * 2 + RNG_STATE_BYTES


def _peak(module, x, dy):
    """Most bytes that a step holds beyond what lived before it."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    small = torch.zeros((), device=x.device, requires_grad=True)

    def step():
        torch.autograd.grad(module(x), [x, *parameters], dy)
        # Autograd's thread for the device lets go of a step's tensors a little after the step has
        # returned, yet before it begins another.
        torch.autograd.grad(small * 2, small)

    gc.collect()  # Or what earlier tests left may go while this one counts.
    for _ in range(2):  # The libraries' workspaces are there from the first on.
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        peak = torch.cuda.max_memory_allocated() - before
    return peak


@pytest.mark.parametrize("path", [None, "aten", "sm80", "sm90"], ids=str)
@pytest.mark.parametrize("factors", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("options", [{"r": 64, "k": 4}, {"r": 256, "k": 8}], ids=["r64", "r256"])
def test_the_peak_of_a_step_is_that_of_the_frozen_layer_and_what_must_be_there(
    cuda, randomise, forced, options, factors, path
):
    # A copy of x or dy would be twice what is allowed for workspaces and rounded factors.
    tokens, width, workspace = 16384, 2048, 32 << 20
    linear = nn.Linear(width, width, bias=False, device=cuda, dtype=torch.bfloat16)
    linear.requires_grad_(False)
    x = torch.randn(tokens, width, device=cuda, dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn_like(x)
    base = _peak(linear, x, dy)
    layer = randomise(GraLoRALinear.from_linear(linear, **options, adapter_dtype=factors))
    latent = options["k"] * tokens * options["r"] * x.element_size()
    gradients = sum(p.nbytes for p in layer.parameters() if p.requires_grad)
    with forced(path):
        assert _peak(layer, x, dy) <= base + 2 * latent + gradients + workspace


def test_merged_layer_keeps_nothing(device, randomise):
    layer = randomise(GraLoRALinear(N, M, r=8, k=2, device=device))
    layer.merge()
    assert saved_bytes(layer, torch.randn(T, N, device=device, requires_grad=True)) == 0


def test_without_gradients_nothing_is_kept(device, randomise):
    layer = randomise(GraLoRALinear(N, M, r=8, k=2, device=device))
    with torch.no_grad():
        assert saved_bytes(layer, torch.randn(T, N, device=device)) == 0
