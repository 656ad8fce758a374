"""PEFT's LoRA layers over quantised base layers, each imported once a model has one."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# PEFT's class, and the module here that has its subclass under the same name.
_MODULES = {
    "peft.tuners.lora.bnb": "gralora.integrations.peft.bnb_layers",
    "peft.tuners.lora.torchao": "gralora.integrations.peft.torchao_layer",
}


def quantised_class(kind: type) -> type | None:
    """The accelerated subclass of one of PEFT's quantised LoRA layers, or None."""
    if kind.__module__ not in _MODULES:
        return None
    found: Any = getattr(import_module(_MODULES[kind.__module__]), kind.__name__, None)
    return found if isinstance(found, type) and issubclass(found, kind) else None
