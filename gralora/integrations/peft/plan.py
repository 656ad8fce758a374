"""Which way a layer's forward takes, and why."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from gralora.integrations.peft.factors import Factors, first
from gralora.integrations.peft.obstacles import base_operands, global_obstacle

Way = Literal["fused", "beside", "base", "peft"]

# What a forward pass without mixed batches does, a plain tuple since every pass builds one:
# way: "fused": base layer and adapter in one operator. "beside": the base layer's own forward, the
#      adapter by an operator. "base": the base layer alone. "peft": PEFT's forward.
# reason: why, in words.
# factors: of the active adapters, where operators compute them.
# base: weight [M, N] and bias [M] of the base layer, where an operator computes it.
Plan = tuple[Way, str, tuple[Factors, ...], tuple[Tensor, Tensor | None] | None]

_DISABLED: Plan = ("base", "adapters are disabled", (), None)
_MERGED: Plan = ("base", "adapters are merged into the weight", (), None)
_NONE_ACTIVE: Plan = ("base", "no active adapter", (), None)


def plan(layer: Any) -> Plan:
    """Decide by the present state of a layer; the input may still demand another way."""
    if layer._disable_adapters:
        return _DISABLED
    if layer.merged_adapters:
        return _MERGED
    active = layer._active_adapter
    factors: tuple[Factors, ...] = ()
    for name in (active,) if isinstance(active, str) else active:
        found = layer.factors(name)
        if isinstance(found, str):
            return "peft", found, (), None
        if found is not None:
            factors = (*factors, found)
    if not factors:
        return _NONE_ACTIVE
    obstacle = global_obstacle()
    if obstacle is not None:
        return layer.way_with_global_hooks, obstacle, factors, None
    base = base_operands(layer._modules["base_layer"], first(factors[0]))
    if isinstance(base, str):
        return "beside", base, factors, None
    return "fused", "plain base layer and factors", factors, base
