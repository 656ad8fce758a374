"""Which modules an adapter gets copies of: those a configuration names, and those tied to them."""

from __future__ import annotations

from torch import nn

from gralora.config import GraLoRAConfig
from gralora.injection import names
from gralora.injection.paths import is_inside, outermost
from gralora.injection.saved_module import SavedModule
from gralora.injection.survey import Survey
from gralora.nn import GraLoRAExperts, GraLoRAWrapper, MergeableLayer

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def modules_to_save(found: Survey, config: GraLoRAConfig) -> tuple[str, ...]:
    """First names of the modules that a configuration names; one inside another is left out."""
    entries = names.saved_entries(config)
    chosen = {found.first_name(name) for name in found.modules if entries.of(name)}
    return _ordered(found, outermost(chosen))


def with_tied_modules(
    model: nn.Module, found: Survey, named: tuple[str, ...], who: str
) -> tuple[str, ...]:
    """Those modules and the ones that share a parameter with them, checked, in the model's order.

    Raises:
        TypeError: a module that cannot be called, or that holds adapters.
        ValueError: a parameter of a saved module belongs to the model itself or to an adapted
            layer, or a copy would not work by itself.

    """
    chosen = set(named)
    while partners := _tied_partners(model, found, chosen, who):
        chosen = outermost(chosen | partners)
    for name in chosen:
        _check_savable(name, found, who)
    return _ordered(found, chosen)


def _ordered(found: Survey, chosen: set[str]) -> tuple[str, ...]:
    return tuple(name for name in found.modules if name in chosen)


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of a module as the base model has them, without those of adapters."""
    if isinstance(module, SavedModule):
        module = module.original_module
        return dict(module.named_parameters(remove_duplicate=False))
    if isinstance(module, (GraLoRAWrapper, GraLoRAExperts)):
        return dict(module.base_layer.named_parameters(remove_duplicate=False))
    return {key: value for key, value in module._parameters.items() if value is not None}


def _tied_partners(model: nn.Module, found: Survey, chosen: set[str], who: str) -> set[str]:
    """Modules outside `chosen` that own a parameter which one of `chosen` has too."""
    inside: dict[int, str] = {}
    for name in chosen:
        for inner, module in ((name, found.modules[name]), *found.inside(name)):
            inside |= {id(value): f"{inner}.{key}" for key, value in own_parameters(module).items()}
    for key, parameter in model._parameters.items():
        if parameter is not None and id(parameter) in inside:
            raise ValueError(
                f"{who}: a module that is saved must not share a parameter with the model itself, "
                f"got {inside[id(parameter)]} and {key}"
            )
    everywhere = {alias for name in chosen for alias in found.names[id(found.modules[name])]}
    partners = set()
    for name, module in found.modules.items():
        if is_inside(name, everywhere):
            continue
        first = found.first_name(name)
        if is_inside(first, everywhere):
            raise ValueError(
                f"{who}: a module inside a saved one must not be used outside it, got {first}, "
                f"which is {name} too (save both by themselves)"
            )
        for key, parameter in own_parameters(module).items():
            if id(parameter) not in inside:
                continue
            if isinstance(module, MergeableLayer):
                raise ValueError(
                    f"{who}: a saved module must not share a weight with an adapted layer, got "
                    f"{inside[id(parameter)]} and {name}.{key}"
                )
            partners.add(first)
    return partners


def _check_savable(name: str, found: Survey, who: str) -> None:
    module = found.modules[name]
    if isinstance(module, _CONTAINERS):
        raise TypeError(
            f"{who}: a saved module must be one that is called, got {name}, a "
            f"{type(module).__name__} (name the modules inside it)"
        )
    for inner, part in ((name, module), *found.inside(name)):
        if isinstance(part, MergeableLayer) or (isinstance(part, SavedModule) and inner != name):
            raise TypeError(
                f"{who}: a saved module must hold no adapters, got {name} with {inner}, which "
                "another adapter has changed (merge_and_unload() gives the plain model back)"
            )
        if "forward" in part.__dict__:
            raise ValueError(
                f"{who}: a saved module must have the forward of its class, got {inner} with one "
                "of its own, as accelerate's offloading sets it (a copy would still call the "
                "original); load the model without device_map"
            )
