"""What the layer keeps for its backward: x, H and the parameters, nothing else."""

from __future__ import annotations

import pytest
import torch

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


def test_merged_layer_keeps_nothing(device, randomise):
    layer = randomise(GraLoRALinear(N, M, r=8, k=2, device=device))
    layer.merge()
    assert saved_bytes(layer, torch.randn(T, N, device=device, requires_grad=True)) == 0


def test_without_gradients_nothing_is_kept(device, randomise):
    layer = randomise(GraLoRALinear(N, M, r=8, k=2, device=device))
    with torch.no_grad():
        assert saved_bytes(layer, torch.randn(T, N, device=device)) == 0
