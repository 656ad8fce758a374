"""Keeps torch's encoder layers from passing adapters by."""

from __future__ import annotations

from torch import nn

from gralora.nn import GraLoRALinear


def disable(model: nn.Module) -> None:
    """Let every ``nn.TransformerEncoderLayer`` that holds an adapted layer call it.

    In evaluation its fused path reads the weights of its two linear layers, never calling them,
    and an adapter would be ignored. It is taken for known activations only, so the layer is told
    that its activation is another one. The encoder around it would still pack padded batches for
    the fused path.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and _has_adapters(module):
            module.activation_relu_or_gelu = 0
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and _has_adapters(module):
            module.use_nested_tensor = False


def _has_adapters(module: nn.Module) -> bool:
    return any(isinstance(layer, GraLoRALinear) for layer in module.modules())
