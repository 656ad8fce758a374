"""Which class adapts a layer."""

from __future__ import annotations

from torch import nn

from gralora.nn.conv1d import GraLoRAConv1D
from gralora.nn.kinds import conv1d_class, has_packed_weight, is_plain_conv1d, is_plain_linear
from gralora.nn.linear import GraLoRALinear
from gralora.nn.merging import MergeableLayer
from gralora.nn.weighted import WeightedLayer
from gralora.nn.wrapper import GraLoRAWrapper


def adapted_layer(module: nn.Module) -> MergeableLayer:
    """Take a layer over, or wrap it, without adapters yet.

    Raises:
        TypeError, ValueError: as the ``without_adapters`` of the class that is chosen.

    """
    if not has_packed_weight(module):
        if is_plain_linear(module):
            return GraLoRALinear.without_adapters(module)
        if is_plain_conv1d(module):
            return GraLoRAConv1D.without_adapters(module)
    return GraLoRAWrapper.without_adapters(module)


def is_linear(module: nn.Module) -> bool:
    """Whether a layer is, or was before it was adapted, an ``nn.Linear`` or a ``Conv1D``.

    These are the layers that ``"all-linear"`` means, in PEFT too.
    """
    if isinstance(module, GraLoRAWrapper):
        module = module.base_layer
    return isinstance(module, (nn.Linear, WeightedLayer)) or conv1d_class(module) is not None
