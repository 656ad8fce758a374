"""Which way a layer's forward takes, and why."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from gralora.integrations.peft.access import child
from gralora.integrations.peft.factors import Factors
from gralora.integrations.peft.obstacles import base_obstacle

Way = Literal["fused", "beside", "base", "peft"]


class Plan(NamedTuple):
    """What a forward pass without mixed batches does.

    Attributes:
        way: ``fused``: base layer and adapter in one operator. ``beside``: the base layer's own
            forward, the adapter by an operator. ``base``: the base layer alone. ``peft``: PEFT's
            forward.
        reason: why, in words.
        factors: of the active adapters, where operators compute them.

    """

    way: Way
    reason: str
    factors: tuple[Factors, ...] = ()


_DISABLED = Plan("base", "adapters are disabled")
_MERGED = Plan("base", "adapters are merged into the weight")
_NONE_ACTIVE = Plan("base", "no active adapter")


def plan(layer: Any) -> Plan:
    """Decide by the present state of a layer; the input may still demand another way."""
    if layer.disable_adapters:
        return _DISABLED
    if layer.merged:
        return _MERGED
    factors: list[Factors] = []
    for name in layer.active_adapters:
        if layer.has_adapter(name):
            found = layer.factors(name)
            if isinstance(found, str):
                return Plan("peft", found)
            factors.append(found)
    if not factors:
        return _NONE_ACTIVE
    obstacle = base_obstacle(child(layer, "base_layer"), factors[0].first)
    if obstacle is not None:
        return Plan("beside", obstacle, tuple(factors))
    return Plan("fused", "plain base layer and factors", tuple(factors))
