"""Layers with granular low-rank adapters."""

from gralora.nn.linear import GraLoRALinear
from gralora.nn.spec import AdapterSpec

__all__ = ["AdapterSpec", "GraLoRALinear"]
