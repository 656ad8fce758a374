"""Keeps torch's encoder layers from passing adapters by."""

from __future__ import annotations

from typing import Any

from torch import nn

from gralora.nn import MergeableLayer

_KEPT = "_gralora_fused_settings"
_SETTINGS = (
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu", 0),
    (nn.TransformerEncoder, "use_nested_tensor", False),
)


def disable(model: nn.Module) -> None:
    """Let every ``nn.TransformerEncoderLayer`` that holds an adapted layer call it.

    In evaluation its fused path reads the weights of its two linear layers, never calling them,
    and an adapter would be ignored. It is taken for known activations only, so the layer is told
    that its activation is another one. The encoder around it would still pack padded batches for
    the fused path.
    """
    for module in model.modules():
        for kind, setting, value in _SETTINGS:
            if isinstance(module, kind) and _has_adapters(module) and setting not in _kept(module):
                _kept(module)[setting] = getattr(module, setting)
                setattr(module, setting, value)


def enable(model: nn.Module) -> None:
    """Give the fused path back to layers that hold no adapters any more."""
    for module in model.modules():
        for setting, value in module.__dict__.pop(_KEPT, {}).items():
            setattr(module, setting, value)


def _kept(module: nn.Module) -> dict[str, Any]:
    kept: dict[str, Any] = module.__dict__.setdefault(_KEPT, {})
    return kept


def _has_adapters(module: nn.Module) -> bool:
    return any(isinstance(layer, MergeableLayer) for layer in module.modules())
