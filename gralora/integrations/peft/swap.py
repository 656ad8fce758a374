"""Swaps the classes of PEFT's layers, and swaps them back."""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeVar

from peft.tuners.gralora.layer import Linear as PeftGralora
from peft.tuners.gralora.model import GraloraModel as PeftGraloraModel
from peft.tuners.lora.layer import Linear as PeftLora
from torch import nn

from gralora.integrations.peft import gralora_layer, gralora_model, lora_layer
from gralora.integrations.peft.forward import AcceleratedForward
from gralora.integrations.peft.quantised import quantised_class
from gralora.integrations.peft.requantising import RequantisingMerge
from gralora.integrations.peft.selection import warn_of_ignored_layers

Model = TypeVar("Model", bound=nn.Module)

_ACCELERATED: dict[type, type] = {
    PeftLora: lora_layer.Linear,
    PeftGralora: gralora_layer.Linear,
    PeftGraloraModel: gralora_model.GraloraModel,
}
# Where accelerate's hooks keep, or leave, a bound forward on the module itself.
_BOUND_FORWARDS = ("forward", "_old_forward")


def accelerate(model: Model) -> Model:
    """Make PEFT's LoRA and GraLoRA layers of a model compute with gralora's operators.

    Only the classes of the layers change, to subclasses of PEFT's own with another ``forward``:
    parameters, names, state dict, saving and every method of PEFT stay. What cannot be sped up
    keeps PEFT's forward; :func:`report` says which and why. Adapters added later are sped up at
    once where a layer was; where they bring new layers, call this again, which is harmless at any
    time. Layers of other PEFT methods are left alone.

    GraLoRA then also takes ``adapter_names``, one adapter for each row of a batch, and is merged
    into quantised weights. Second derivatives, forward-mode derivatives and export by tracing need
    :func:`restore` first.

    Args:
        model: a PeftModel, or any module that holds layers of PEFT; changed in place.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is no module.

    Warns:
        UserWarning: PEFT has adapted layers beyond `layers_to_transform`, which its GraLoRA ignores
            where `target_modules` is a string.

    """
    _check_module(model, "accelerate")
    for module in model.modules():
        kind = accelerated_class(type(module))
        if kind is not None:
            _set_class(module, kind)
        if isinstance(module, gralora_model.GraloraModel):
            warn_of_ignored_layers(module)
    return model


def restore(model: Model) -> Model:
    """Undo :func:`accelerate`: every layer is of PEFT's own class again.

    Args:
        model: with accelerated layers, in place; one without any is left as it is.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is no module.
        RuntimeError: adapters are merged into a quantised weight, which PEFT's layer cannot undo.

    """
    _check_module(model, "restore")
    for name, module in model.named_modules():
        if isinstance(module, RequantisingMerge) and module.kept_base is not None:
            raise RuntimeError(
                "restore: quantised weights must be without adapters, got "
                f"{getattr(module, 'merged_adapters', None)} merged into {name or 'the layer'} "
                "(call unmerge_adapter first)"
            )
    for module in model.modules():
        if is_accelerated(module):
            _set_class(module, _peft_class(type(module)))
    return model


def is_accelerated(module: nn.Module) -> bool:
    """Whether the module's class is one of those that :func:`accelerate` sets."""
    return isinstance(module, AcceleratedForward | gralora_model.GraloraModel)


def accelerated_class(kind: type) -> type | None:
    """The subclass that takes the place of exactly this class of PEFT, or None."""
    return _ACCELERATED.get(kind) or quantised_class(kind)


def _peft_class(kind: type) -> type:
    """PEFT's class, the last base of each of the subclasses."""
    return kind.__bases__[-1]


def _set_class(module: nn.Module, kind: Any) -> None:
    before: Any = type(module)
    module.__class__ = kind
    for name in _BOUND_FORWARDS:
        bound = module.__dict__.get(name)
        if isinstance(bound, MethodType) and bound.__func__ is before.forward:
            module.__dict__[name] = MethodType(kind.forward, module)


def _check_module(model: object, who: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{who}: model must be a torch.nn.Module, usually a PeftModel, got "
            f"{type(model).__module__}.{type(model).__qualname__}"
        )
