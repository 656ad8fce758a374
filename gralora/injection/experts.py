"""Targets that are parameters: fused experts, which become modules when they are adapted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from gralora.config import GraLoRAConfig
from gralora.injection import names
from gralora.injection.listing import some
from gralora.injection.paths import is_inside
from gralora.injection.survey import Survey
from gralora.nn import ExpertWeights, GraLoRAExperts
from gralora.nn.adapters import check_dtypes
from gralora.nn.experts.layout import (
    FUSED_DIMENSIONS,
    features,
    fused_parameters,
    projections,
)
from gralora.nn.starts import is_pissa


def choose_parameters(
    found: Survey, config: GraLoRAConfig, saved: tuple[str, ...], who: str
) -> tuple[str, ...]:
    """Full names of the parameters to adapt, in the model's order, by their owners' first names.

    An entry of `target_parameters` is a name or the end of one from a dot on, as in PEFT.

    Raises:
        ValueError: entries are given, but none selects a parameter.

    """
    if not config.target_parameters:
        return ()
    targeted = names.NameMatcher(config.target_parameters)
    excluding = names.NameMatcher(config.exclude_modules)
    copied = frozenset(saved)
    chosen: dict[str, None] = {}
    excluded: set[str] = set()
    for owner, name in _parameter_names(found):
        full_name = f"{owner}.{name}"
        first = f"{found.first_name(owner)}.{name}"
        if excluding.matching(full_name) or excluding.matching(owner) or is_inside(owner, copied):
            excluded.add(first)
        elif names.is_in_wanted_layers(config, full_name) and targeted.matching(full_name):
            chosen[first] = None
    selected = tuple(name for name in chosen if name not in excluded)
    if not selected:
        raise ValueError(
            f"{who}: target_parameters must select a parameter of a module of the model, got "
            f"{list(config.target_parameters)} (fused parameters of the model: "
            f"{some(fused_names(found))})"
        )
    return selected


def check_parameter(found: Survey, name: str, config: GraLoRAConfig, who: str) -> None:
    """Raise unless a parameter can be adapted.

    Raises:
        TypeError: not one of floating numbers that the operators know, or an adapter that would
            start as a part of it.
        ValueError: not fused experts, sharded already by tensors or experts, or dropout where it is
            not possible.

    """
    owner, _, attribute = name.rpartition(".")
    module = base_of(found.modules[owner])
    parameter = module._parameters[attribute]
    assert parameter is not None
    # Not isinstance: a torch without distributed has no DTensor.
    if hasattr(parameter, "placements"):
        raise ValueError(
            f"{who}: a target must not be sharded yet, got {name}, a DTensor (inject before "
            "fully_shard)"
        )
    if getattr(module, "_is_expert_parallel", False):
        raise ValueError(
            f"{who}: a target must have all experts, got {name}, whose module is expert parallel "
            "(inject into a model on one device, or with whole experts on each)"
        )
    if parameter.dim() != FUSED_DIMENSIONS or parameter.numel() == 0:
        raise ValueError(
            f"{who}: a target parameter must have three dimensions, a matrix for each expert, got "
            f"{name} with {list(parameter.shape)} (a module's own matrix is adapted through "
            "target_modules)"
        )
    check_dtypes(parameter.dtype, None, who=f"{who}: {name}")
    if is_pissa(config.init_weights):
        raise TypeError(
            f"{who}: init_weights={config.init_weights!r} takes a part out of the weight, which "
            "must be that of an nn.Linear or a Conv1D, got the fused experts of "
            f'{name} (accepted here: "kaiming", "gaussian", "orthogonal")'
        )
    found_projections = projections(module)
    if config.dropout and (found_projections is None or attribute not in found_projections):
        raise ValueError(
            f"{who}: dropout must be 0 for experts that run themselves, got {config.dropout} with "
            f"{name} of a {type(module).__name__} (accepted: the experts modules of transformers)"
        )


def has_parameter(found: Survey, name: str) -> bool:
    """Whether a module of the model has the parameter of that full name."""
    owner, _, attribute = name.rpartition(".")
    module = found.modules.get(owner)
    return module is not None and base_of(module)._parameters.get(attribute) is not None


def fused_sizes(module: nn.Module, attribute: str) -> tuple[int, int, int]:
    """``(E, N, M)`` of a fused parameter, before and after its owner is wrapped."""
    base = base_of(module)
    parameter = base._parameters[attribute]
    assert parameter is not None
    return (parameter.shape[0], *features(base, parameter))


def base_of(module: nn.Module) -> nn.Module:
    """The module that owns fused parameters, whether it is wrapped or not."""
    return module.base_layer if isinstance(module, GraLoRAExperts) else module


def wrap_owners(model: nn.Module, parameters: tuple[str, ...]) -> dict[str, GraLoRAExperts]:
    """Wrappers, which the model does not have yet, for owners of parameters that need one.

    Args:
        model: not changed.
        parameters: full names.

    """
    wrappers: dict[str, GraLoRAExperts] = {}
    for name in parameters:
        owner = name.rpartition(".")[0]
        module = model.get_submodule(owner)
        if owner not in wrappers and not isinstance(module, GraLoRAExperts):
            wrappers[owner] = GraLoRAExperts(module)
    return wrappers


def weights_of(
    model: nn.Module, wrappers: Mapping[str, GraLoRAExperts], name: str
) -> ExpertWeights:
    """The adapters of a parameter, in a wrapper that the model has or will have."""
    owner, _, attribute = name.rpartition(".")
    module = wrappers.get(owner) or model.get_submodule(owner)
    assert isinstance(module, GraLoRAExperts)
    return module.weights[attribute]


def _parameter_names(found: Survey) -> Iterator[tuple[str, str]]:
    """Every module's own parameters: ``(name of the module, name of the parameter)``."""
    for owner, module in found.modules.items():
        for name, parameter in base_of(module)._parameters.items():
            if parameter is not None:
                yield owner, name


def fused_names(found: Survey) -> Iterator[str]:
    """Full names of the parameters that could be adapted, under all their owners' names."""
    for owner, module in found.modules.items():
        for name in fused_parameters(base_of(module)):
            yield f"{owner}.{name}"
