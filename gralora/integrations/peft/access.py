"""Submodules and tensors of a module, without nn.Module's search.

``module.weight`` looks everywhere else before it finds a parameter, which for a handful of them
takes longer than a kernel's launch. A tensor that stands in for a parameter (sharded training sets
such) is an attribute alone.
"""

from __future__ import annotations

from typing import Any


def child(module: Any, name: str) -> Any:
    """A submodule, or a KeyError."""
    return module._modules[name]


def parameter(module: Any, name: str) -> Any:
    """A parameter, what stands in for it, or None where the module has none."""
    found = module._parameters.get(name)
    return getattr(module, name) if found is None else found
