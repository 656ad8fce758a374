"""Kinds of base layers, told apart without importing the libraries that define them."""

from __future__ import annotations

from typing import Any, TypeGuard

from torch import Tensor, nn


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is an ``nn.Linear`` that computes what torch's own does."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def has_computed_weight(module: nn.Module) -> bool:
    """Whether the weight is the result of a computation, as a parametrisation's is."""
    return not isinstance(getattr(module, "weight", None), nn.Parameter)


def has_packed_weight(module: nn.Module) -> bool:
    """Whether the weight is a wrapper around other tensors, such as torchao's quantised ones."""
    weight = getattr(module, "weight", None)
    # Not isinstance: a torch without distributed has no DTensor, which is a wrapper too.
    return hasattr(weight, "__tensor_flatten__") and not hasattr(weight, "placements")


def conv1d_class(module: nn.Module) -> type[nn.Module] | None:
    """The ``Conv1D`` of transformers that a module is an instance of, or None."""
    for kind in type(module).__mro__:
        if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils":
            return kind
    return None


def is_plain_conv1d(module: nn.Module) -> bool:
    """Whether a module computes what transformers' own ``Conv1D`` does."""
    kind = conv1d_class(module)
    return kind is not None and type(module).forward is kind.forward


def sizes(module: nn.Module) -> tuple[Any, Any]:
    """``(N, M)`` as a module states them, unchecked; None for what it does not state."""
    weight = getattr(module, "weight", None)
    if conv1d_class(module) is not None and isinstance(weight, Tensor) and weight.dim() == 2:
        return tuple(weight.shape)  # type: ignore[return-value]
    return getattr(module, "in_features", None), getattr(module, "out_features", None)


def has_forward(module: nn.Module) -> bool:
    """Whether a module can be called at all."""
    return "forward" in module.__dict__ or type(module).forward is not nn.Module.forward
