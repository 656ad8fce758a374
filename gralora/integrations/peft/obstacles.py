"""What keeps a module or a tensor from being read past its module's forward, in words.

These checks run in every forward pass, eager and traced, and nothing is remembered between two
passes: every state counts from the moment it is set. So the usual state is recognised by a few
attribute reads, and all that has more to say stands behind them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers.pytorch_utils import Conv1D

from gralora.integrations.peft.access import parameter

DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))
_Parameter: type = nn.Parameter
# Torch's own registers of the hooks that every module calls.
GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)
_forward_hooks, _forward_pre_hooks, _backward_hooks, _backward_pre_hooks = GLOBAL_HOOKS


def tensor_obstacle(tensor: Any) -> str | None:
    """Why a tensor cannot go into an operator as it is, or None.

    Subclasses (quantised, distributed), partitioned parameters (DeepSpeed's ZeRO-3 marks them by
    ``ds_id``) and tensors on the meta device (offloaded) hold other numbers than their shape says.
    On other devices than these two the operators have no rules for autocast.
    """
    kind = type(tensor)
    if kind is not _Parameter and kind is not Tensor:
        return f"is a {kind.__name__}"
    if not (tensor.is_cuda or tensor.is_cpu):
        return f"is on the device {tensor.device.type}"
    if tensor.dtype not in DTYPES:
        return f"is {tensor.dtype}"
    if hasattr(tensor, "ds_id"):
        return "is partitioned by DeepSpeed"
    return None


def module_obstacle(module: Any) -> str | None:
    """Why a module's forward must be called, rather than its parameters read, or None."""
    state = module.__dict__
    if state["_forward_hooks"] or state["_forward_pre_hooks"]:
        return "has forward hooks"
    if state["_backward_hooks"] or state["_backward_pre_hooks"]:
        return "has backward hooks"
    if "forward" in state and has_other_forward(module):
        return "has a replaced forward"
    return None


def has_other_forward(module: Any) -> bool:
    """Whether a forward is set on the module itself that is not its class's own."""
    own = module.__dict__.get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def global_obstacle() -> str | None:
    """Why every module must be called, or None."""
    if _forward_hooks or _forward_pre_hooks or _backward_hooks or _backward_pre_hooks:
        return "all modules have hooks"
    return None


def base_operands(base: Any, factor: Tensor) -> tuple[Tensor, Tensor | None] | str:
    """Weight ``[M, N]`` and bias ``[M]`` of a base layer, or why the layer must be called.

    Args:
        base: any module.
        factor: one of the adapter's, for the device.

    """
    kind = type(base)
    if kind is not nn.Linear and kind is not Conv1D:
        return f"base layer is a {kind.__name__}"
    found = module_obstacle(base)
    if found is not None:
        return f"base layer {found}"
    weight, bias = parameter(base, "weight"), parameter(base, "bias")
    found = tensor_obstacle(weight)
    if found is not None:
        return f"base weight {found}"
    if weight.get_device() != factor.get_device():
        return "base weight and adapter are on different devices"
    if bias is not None:
        found = tensor_obstacle(bias)
        if found is not None:
            return f"base bias {found}"
    # Conv1D keeps its weight as [N, M].
    return weight if kind is nn.Linear else weight.t(), bias


def input_obstacle(x: Any) -> bool:
    """Whether an input needs PEFT's own operations: a subclass, another dtype, torch.func."""
    kind = type(x)
    return (
        (kind is not Tensor and kind is not _Parameter)
        or x.dtype not in DTYPES
        or torch._C._are_functorch_transforms_active()
    )
