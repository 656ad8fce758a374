"""What keeps a module or a tensor from being read past its module's forward, in words.

These checks run in every forward pass, eager and traced: each is a few attribute reads, and a
message is put together only where there is something to say.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gralora.integrations.peft.access import parameter

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tensor_obstacle(tensor: Any) -> str | None:
    """Why a tensor cannot go into an operator as it is, or None.

    Subclasses (quantised, distributed), partitioned parameters (DeepSpeed's ZeRO-3 marks them by
    ``ds_id``) and tensors on the meta device (offloaded) hold other numbers than their shape says.
    On other devices than these two the operators have no rules for autocast.
    """
    kind = type(tensor)
    if kind is not nn.Parameter and kind is not Tensor:
        return f"is a {kind.__name__}"
    if not (tensor.is_cuda or tensor.is_cpu):
        return f"is on the device {tensor.device.type}"
    if tensor.dtype not in _DTYPES:
        return f"is {tensor.dtype}"
    if hasattr(tensor, "ds_id"):
        return "is partitioned by DeepSpeed"
    return None


def module_obstacle(module: Any) -> str | None:
    """Why a module's forward must be called, rather than its parameters read, or None."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "has forward hooks"
    if module._backward_hooks or module._backward_pre_hooks:
        return "has backward hooks"
    if has_other_forward(module):
        return "has a replaced forward"
    return None


def has_other_forward(module: Any) -> bool:
    """Whether a forward is set on the module itself that is not its class's own."""
    own = module.__dict__.get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def base_obstacle(base: Any, factor: Tensor) -> str | None:
    """Why a base layer must be called, rather than its weight handed to an operator, or None.

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
    return None


def input_obstacle(x: Any) -> bool:
    """Whether an input needs PEFT's own operations: a subclass, another dtype, torch.func."""
    return (
        (type(x) is not Tensor and type(x) is not nn.Parameter)
        or x.dtype not in _DTYPES
        or torch._C._are_functorch_transforms_active()
    )
