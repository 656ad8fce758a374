"""Layers with granular low-rank adapters."""

from gralora.nn.conv1d import GraLoRAConv1D
from gralora.nn.experts import ExpertWeights, GraLoRAExperts
from gralora.nn.linear import GraLoRALinear
from gralora.nn.merging import MergeableLayer
from gralora.nn.spec import AdapterSpec
from gralora.nn.wrapper import GraLoRAWrapper

__all__ = [
    "AdapterSpec",
    "ExpertWeights",
    "GraLoRAConv1D",
    "GraLoRAExperts",
    "GraLoRALinear",
    "GraLoRAWrapper",
    "MergeableLayer",
]
