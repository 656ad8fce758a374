"""Outputs that were computed before they are asked for, and when they may be handed out.

An output may stand for what computing it now would give, where all of this is the same: the input
and its count of changes, the layer's operands and theirs, the modes of autograd and autocast, the
stream, and the pass that gradient checkpointing may repeat. :mod:`gralora.nn.shared_input` says who
computes early.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import (
    Tensor,
    get_autocast_dtype,
    is_autocast_enabled,
    is_grad_enabled,
    is_inference_mode_enabled,
)
from torch._C import _are_functorch_transforms_active as transforms_active
from torch._C import _current_graph_task_id as graph_task
from torch._C._autograd import _top_saved_tensors_default_hooks as top_hooks

from gralora.nn.spec import AdapterSpec

# torch without CUDA lacks it.
_current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)

# See calling_mode.
Mode = tuple[int, torch.dtype | None, bool, bool, int | None, Any]

# weight, bias, A and B of a layer, and of what kind its adapter is.
Operands = tuple[Tensor, Tensor | None, Tensor, Tensor, AdapterSpec]


class Sibling(Protocol):
    """A layer that may be computed with others."""

    def _shared_operands(self) -> Operands | None:
        """Operands of a layer that is a base and one grid adapter now, else None."""


class EarlyOutputs:
    """The outputs of one input that wait for their layers; each is handed out once.

    Args:
        x: the input.
        mode: :func:`calling_mode` in which they are computed.
        in_backward: whether that is in a backward pass.

    Attributes:
        in_backward: see above.
        waiting: by the id of each layer whose output was not taken, its operands,
            :func:`count_changes` of them before they were used, and the output.

    """

    __slots__ = ("_mode", "_version", "_x", "in_backward", "waiting")

    def __init__(self, x: Tensor, mode: Mode, in_backward: bool) -> None:
        self._x, self._version, self._mode = x, x._version, mode
        self.in_backward = in_backward
        self.waiting: dict[int, tuple[Operands, int, Tensor]] = {}

    def take(self, layer: Sibling, x: Any) -> Tensor | None:
        """A layer's output, or None where it has to be computed now."""
        known, changes, output = self.waiting.pop(id(layer))
        if x is not self._x or x._version != self._version or _mode_on(self._mode[0]) != self._mode:
            return None
        operands = layer._shared_operands()
        if operands is None or count_changes(operands) != changes:
            return None
        for now, then in zip(operands, known, strict=True):
            if now is not then:
                return None
        return output


def count_changes(operands: Operands) -> int:
    """What is equal where the same operands have the same values, and gradients are wanted of them.

    Raises:
        RuntimeError: a parameter made in ``torch.inference_mode``, which does not count changes.

    """
    weight, bias, A, B, _ = operands
    # A count never falls.
    count = weight._version + A._version + B._version
    if bias is not None:
        count += bias._version
    return 4 * count + 2 * A.requires_grad + B.requires_grad


def calling_mode(x: Any) -> Mode | None:
    """How a call with this input computes, to compare; None where each layer computes for itself.

    Returns:
        The index of the device, autocast's dtype or None where it is off, whether a graph is
        recorded, whether that is ruled out, the stream, and the pass that may be repeated.

    """
    # What a subclass does with an operator is its own. Tensors of torch.inference_mode do not count
    # their changes.
    if type(x) is not Tensor or x.is_inference() or transforms_active():
        return None
    return _mode_on(x.get_device()) if x.is_cuda or x.is_cpu else None


def _mode_on(index: int) -> Mode:
    device = "cpu" if index < 0 else "cuda"
    recorded = is_grad_enabled()
    return (
        index,
        get_autocast_dtype(device) if is_autocast_enabled(device) else None,
        recorded,
        is_inference_mode_enabled(),
        None if index < 0 or _current_stream is None else _current_stream(index),
        _repeatable_pass() if recorded else None,
    )


def _repeatable_pass() -> Any:
    """What stands for the forward pass that checkpointing without reentry may repeat, or None.

    It lives for as long as the pass may be repeated.
    """
    hooks = top_hooks(True)
    if hooks is None or getattr(hooks[1], "__module__", None) != "torch.utils.checkpoint":
        return None
    return hooks[1]


def is_in_backward() -> bool:
    """Whether a backward pass runs in this thread, as where checkpointing repeats a forward one."""
    return graph_task() != -1
