"""The state that nearly every call finds, recognised in as few steps as Python has.

:func:`gralora.integrations.peft.plan.plan` decides; this says the same sooner, where the layer has
one active adapter and can run fused. So each condition that keeps a layer from the fused way stands
here once more, without words, and whatever is not plainly so is left to `plan`. Nothing is
remembered between two calls: a hook, an adapter or a tensor counts from the moment it is set.

The host's time of a small layer is mostly such steps, so they are written out where a helper's call
would cost as much as what it does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active as transforms_active

from gralora.integrations.peft.obstacles import DTYPES, GLOBAL_HOOKS

# Arguments of the compiled `linear`: x, weight, bias, A, B, plain_a, plain_b, scaling, dropout_p
# and training.
Arguments = tuple[
    Tensor,
    Tensor,
    Tensor | None,
    Tensor | None,
    Tensor | None,
    Tensor | None,
    Tensor | None,
    float,
    float,
    bool,
]

_Linear: Any = nn.Linear
_Identity: Any = nn.Identity
_Dropout: Any = nn.Dropout
_Parameter: Any = nn.Parameter
_hooks, _pre_hooks, _backward_hooks, _backward_pre_hooks = GLOBAL_HOOKS


def lora_arguments(layer: Any, x: Any) -> Arguments | None:
    """What the operator takes for an input of PEFT's LoRA layer, or None to ask `plan`."""
    state = layer.__dict__
    active = state["_active_adapter"]
    base = _base_operands(state, x)
    if base is None or type(active) is not list or len(active) != 1:
        return None
    weight, bias, device = base
    name = active[0]
    modules = state["_modules"]
    dropout = modules["lora_dropout"]._modules.get(name)
    plain_a = _linear_weight(modules["lora_A"]._modules.get(name), device)
    plain_b = _linear_weight(modules["lora_B"]._modules.get(name), device)
    scaling = state["scaling"].get(name)
    if (
        plain_a is None
        or plain_b is None
        or name in state["lora_variant"]
        or type(scaling) is not float
        or not _is_dropout(dropout)
    ):
        return None
    if type(dropout) is _Identity:
        return x, weight, bias, None, None, plain_a, plain_b, scaling, 0.0, False
    return x, weight, bias, None, None, plain_a, plain_b, scaling, dropout.p, dropout.training


def gralora_arguments(layer: Any, x: Any) -> Arguments | None:
    """What the operator takes for an input of PEFT's GraLoRA layer, or None to ask `plan`."""
    state = layer.__dict__
    active = state["_active_adapter"]
    base = _base_operands(state, x)
    if base is None or type(active) is not list or len(active) != 1:
        return None
    weight, bias, device = base
    name = active[0]
    modules = state["_modules"]
    dropout = modules["gralora_dropout"]._modules.get(name)
    A = modules["gralora_A"]._parameters.get(name)
    B = modules["gralora_B"]._parameters.get(name)
    scaling = state["scaling"].get(name)
    if (
        type(A) is not _Parameter
        or type(B) is not _Parameter
        or A.dtype not in DTYPES
        or B.dtype not in DTYPES
        or A.device != device
        or B.device != device
        or hasattr(A, "ds_id")
        or hasattr(B, "ds_id")
        or type(scaling) is not float
        or not _is_dropout(dropout)
    ):
        return None
    plain_a = plain_b = None
    if state["hybrid_r"][name]:
        plain_a = _linear_weight(modules["gralora_A_general"]._modules.get(name), device)
        plain_b = _linear_weight(modules["gralora_B_general"]._modules.get(name), device)
        if plain_a is None or plain_b is None:
            return None
    if type(dropout) is _Identity:
        return x, weight, bias, A, B, plain_a, plain_b, scaling, 0.0, False
    return x, weight, bias, A, B, plain_a, plain_b, scaling, dropout.p, dropout.training


def _base_operands(
    layer: dict[str, Any], x: Any
) -> tuple[Tensor, Tensor | None, torch.device] | None:
    """Weight, bias and device of an ``nn.Linear`` that a plain input of its dtype reaches.

    Args:
        layer: ``__dict__`` of PEFT's layer.
        x: its input.

    """
    base = layer["_modules"]["base_layer"]
    if type(base) is not _Linear or layer["_disable_adapters"] or layer["merged_adapters"]:
        return None
    state = base.__dict__
    if (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
        or _hooks
        or _pre_hooks
        or _backward_hooks
        or _backward_pre_hooks
    ):
        return None
    parameters = state["_parameters"]
    weight, bias = parameters.get("weight"), parameters.get("bias", x)
    if type(weight) is not _Parameter or type(x) is not Tensor or hasattr(weight, "ds_id"):
        return None
    dtype = weight.dtype
    if dtype is not x.dtype or dtype not in DTYPES or transforms_active():
        return None
    device = weight.device
    if not (weight.is_cuda or weight.is_cpu) or not (bias is None or _is_plain(bias, device)):
        return None
    return weight, bias, device


def _linear_weight(module: Any, device: torch.device) -> Tensor | None:
    """Weight of an ``nn.Linear`` without bias that may be read past its forward."""
    if type(module) is not _Linear:
        return None
    state = module.__dict__
    parameters = state["_parameters"]
    weight: Any = parameters.get("weight")
    if (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
        or parameters.get("bias", weight) is not None
        or type(weight) is not _Parameter
        or weight.dtype not in DTYPES
        or weight.device != device
        or hasattr(weight, "ds_id")
    ):
        return None
    plain: Tensor = weight
    return plain


def _is_plain(tensor: Any, device: torch.device) -> bool:
    return (
        type(tensor) is _Parameter
        and tensor.dtype in DTYPES
        and tensor.device == device
        and not hasattr(tensor, "ds_id")
    )


def _is_dropout(module: Any) -> bool:
    """Whether a module is torch's own dropout, or the identity that PEFT has in its place."""
    kind = type(module)
    if kind is not _Identity and kind is not _Dropout:
        return False
    state = module.__dict__
    return not (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
    )
