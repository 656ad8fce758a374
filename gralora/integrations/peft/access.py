"""Parameters of a module, without nn.Module's search.

``module.weight`` looks everywhere else before it finds a parameter, which for a handful of them
takes longer than a kernel's launch; a bias of None takes it longest. A tensor that stands in for a
parameter (sharded training sets such) is an attribute alone.
"""

from __future__ import annotations

from typing import Any


def parameter(module: Any, name: str) -> Any:
    """A parameter, what stands in for it, or None where the module has none."""
    parameters = module._parameters
    return parameters[name] if name in parameters else getattr(module, name)
