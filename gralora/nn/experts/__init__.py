"""Adapters of fused experts: one for each expert, computed for all of them together."""

from gralora.nn.experts.module import GraLoRAExperts
from gralora.nn.experts.weights import ExpertWeights

__all__ = ["ExpertWeights", "GraLoRAExperts"]
