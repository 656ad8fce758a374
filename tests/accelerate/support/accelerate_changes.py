"""Ways to change an adapted layer after it has run, each the same for PEFT's and for ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def _plus_one(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output + 1


class Tripled(nn.Dropout):
    """Dropout with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * x


class Halved(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


def parts(layer: Any) -> dict[str, nn.Module]:
    """The modules that PEFT's forward calls, by name."""
    found = {"base layer": layer.base_layer}
    for kind in ("lora_A", "lora_B", "lora_dropout"):
        if hasattr(layer, kind):
            found[kind] = getattr(layer, kind)["default"]
    for kind in ("gralora_A_general", "gralora_B_general", "gralora_dropout"):
        if hasattr(layer, kind):
            found[kind] = getattr(layer, kind)["default"]
    return found


def dropout_of(layer: Any) -> nn.ModuleDict:
    """The dropout modules of all adapters."""
    dropouts: nn.ModuleDict = getattr(layer, "lora_dropout", None) or layer.gralora_dropout
    return dropouts


def factors_of(layer: Any) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name."""
    return {name: p for name, p in layer.named_parameters() if "base_layer" not in name}


def replace_parameters(layer: Any) -> None:
    """New parameter objects with other numbers in place of all."""
    for module in layer.modules():
        for name, value in list(module._parameters.items()):
            if value is not None:
                new = nn.Parameter(value.detach() + 0.5, requires_grad=value.requires_grad)
                module._parameters[name] = new


def double_base(layer: Any) -> None:
    layer.base_layer.weight.data = 2 * layer.base_layer.weight.data


def double_factors(layer: Any) -> None:
    with torch.no_grad():
        for value in factors_of(layer).values():
            value.mul_(2)


def replace_base(layer: Any) -> None:
    torch.manual_seed(5)
    layer.base_layer = nn.Linear(12, 8)


def replace_base_by_subclass(layer: Any) -> None:
    torch.manual_seed(5)
    layer.base_layer = Halved(12, 8)


def wrap_base(layer: Any) -> None:
    layer.base_layer = nn.Sequential(layer.base_layer)


def drop_bias(layer: Any) -> None:
    layer.base_layer.bias = None


def tie_weight(layer: Any) -> None:
    torch.manual_seed(5)
    layer.base_layer.weight = nn.Embedding(8, 12).weight


def scale(layer: Any) -> None:
    layer.scaling["default"] *= 3


def scale_by_int(layer: Any) -> None:
    layer.scaling["default"] = 2


def scale_by_tensor(layer: Any) -> None:
    layer.scaling["default"] = torch.tensor(0.25)


def disable(layer: Any) -> None:
    layer.enable_adapters(False)


def disable_and_enable(layer: Any) -> None:
    layer.enable_adapters(False)
    layer.enable_adapters(True)


def merge(layer: Any) -> None:
    layer.merge()


def merge_and_unmerge(layer: Any) -> None:
    layer.merge()
    layer.unmerge()


def merge_and_disable(layer: Any) -> None:
    layer.merge()
    layer.enable_adapters(False)


def deactivate(layer: Any) -> None:
    layer.set_adapter([])


def activate_by_name(layer: Any) -> None:
    layer._active_adapter = "default"


def another_dropout(layer: Any) -> None:
    dropout_of(layer)["default"] = Tripled()


def dropout_by_identity(layer: Any) -> None:
    dropout_of(layer)["default"] = nn.Identity()


def share_forward(layer: Any) -> None:
    """Set the base layer's own forward on it, as restoring a replaced one does."""
    layer.base_layer.forward = layer.base_layer.forward


def replace_forward(layer: Any) -> None:
    base = layer.base_layer
    base.forward = lambda x: nn.functional.linear(x, base.weight) - 1


CHANGES: dict[str, Callable[[Any], None]] = {
    change.__name__: change
    for change in (
        *(replace_parameters, double_base, double_factors, replace_base, replace_base_by_subclass),
        *(wrap_base, drop_bias, tie_weight, scale, scale_by_int, scale_by_tensor, disable),
        *(disable_and_enable, merge, merge_and_unmerge, merge_and_disable, deactivate),
        *(activate_by_name, another_dropout, dropout_by_identity, share_forward, replace_forward),
    )
}

# A hook or a forward on one of the modules that PEFT calls.
ON_A_PART: dict[str, Callable[[nn.Module], Any]] = {
    "forward hook": lambda part: part.register_forward_hook(_plus_one),
    "forward pre-hook": lambda part: part.register_forward_pre_hook(lambda m, args: args[0] + 1),
    "backward hook": lambda part: part.register_full_backward_hook(
        lambda m, grad_input, grad_output: (2 * grad_input[0],)
    ),
    "backward pre-hook": lambda part: part.register_full_backward_pre_hook(
        lambda m, grad_output: (2 * grad_output[0],)
    ),
    "another forward": lambda part: setattr(part, "forward", _then_doubled(part)),
}


def _then_doubled(part: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    own = copy.copy(part)
    return lambda x: 2 * own(x)
