"""Modules with fused experts: which parameters they have, and how they lie."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

FUSED_DIMENSIONS = 3

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What transformers' ``use_experts_implementation`` gives a class in every version, and what its
# products need.
_TRAITS = ("has_gate", "has_bias", "is_transposed", "_apply_gate")


def fused_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Those of a module's own parameters that hold a matrix for each expert."""
    return {
        name: parameter
        for name, parameter in module._parameters.items()
        if parameter is not None
        and parameter.dim() == FUSED_DIMENSIONS
        and parameter.is_floating_point()
    }


def is_transposed(module: nn.Module) -> bool:
    """Whether experts lie as ``[E, N, M]`` and not as ``[E, M, N]``; the rule is PEFT's.

    Source: ``ParamWrapper.update_layer`` of PEFT 0.21, which asks the module.
    """
    return bool(getattr(module, "is_transposed", False))


def features(module: nn.Module, weight: Tensor) -> tuple[int, int]:
    """``(N, M)`` of each expert of a fused parameter of `module`."""
    first, second = weight.shape[1:]
    return (first, second) if is_transposed(module) else (second, first)


def projections(module: nn.Module) -> tuple[str, str] | None:
    """Names of the two fused parameters that transformers' own experts multiply by, in order.

    Returns:
        None where the module is no experts module of transformers, or one that is hooked or whose
        experts lie on several devices: it has to run itself then.

    """
    experts: Any = module
    wrapped = hasattr(type(module).forward, "__wrapped__") and "forward" not in module.__dict__
    if not wrapped or not all(hasattr(module, trait) for trait in _TRAITS):
        return None
    # Whoever has hooked the module's call counts on it.
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return None
    names = ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj")
    fused = fused_parameters(module)
    if getattr(module, "_is_expert_parallel", False) or not fused.keys() >= set(names):
        return None
    return names
