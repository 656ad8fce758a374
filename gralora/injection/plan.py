"""Everything that injecting an adapter will do: all checks made, nothing changed yet."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gralora.config import GraLoRAConfig
from gralora.injection.experts import check_parameter, choose_parameters, fused_sizes
from gralora.injection.notices import notices
from gralora.injection.paths import is_inside, owner
from gralora.injection.patterns import PatternTable
from gralora.injection.record import AdapterRecord, injection_state, unwrap
from gralora.injection.saved_module import SavedModule
from gralora.injection.saving import modules_to_save, own_parameters, with_tied_modules
from gralora.injection.starts import check_starts
from gralora.injection.survey import Survey, survey
from gralora.injection.targets import check_target, choose_targets
from gralora.nn import AdapterSpec, MergeableLayer
from gralora.nn.adapters import check_dtypes
from gralora.nn.choice import is_linear
from gralora.nn.kinds import sizes
from gralora.nn.spec import check_adapter_name, check_int, make_spec


@dataclass(frozen=True)
class Plan:
    """What :func:`gralora.injection.inject.apply_plan` carries out.

    Attributes:
        adapter_name: of the new adapter.
        adapter_dtype: of its factors; None takes each layer's own.
        record: what the model will carry.
        places: every name under which each target, each owner of a target that is a parameter, and
            each saved module is reachable, by first name.
        warnings: what the user should know.

    """

    adapter_name: str
    adapter_dtype: torch.dtype | None
    record: AdapterRecord
    places: dict[str, tuple[str, ...]]
    warnings: tuple[str, ...]


def make_plan(
    model: nn.Module,
    config: GraLoRAConfig,
    adapter_name: str,
    *,
    adapter_dtype: torch.dtype | None = None,
    who: str = "inject",
) -> Plan:
    """Decide what a new adapter changes in a model.

    Args:
        model: bare, or with other adapters.
        config: what to adapt and how.
        adapter_name: a plain identifier that is not in use.
        adapter_dtype: of the factors; None means the weight's, float32 where that is bfloat16,
            float16 or quantised.
        who: opens the error messages.

    Raises:
        TypeError: an argument or a target of the wrong kind.
        ValueError: a name in use, settings that do not fit the model, or a model that is wrapped.
        RuntimeError: an adapter is merged, or a weight cannot give up the part that a PiSSA adapter
            starts with.

    """
    _check_model(model, config, who)
    _check_name(model, config, check_adapter_name(adapter_name, who=who), who)
    found = survey(model)
    named = modules_to_save(found, config)
    targets = choose_targets(model, found, config, named, who)
    parameters = choose_parameters(found, config, named, who)
    saved = with_tied_modules(model, found, named, who)
    for name in targets:
        check_target(found, name, who)
    for name in parameters:
        check_parameter(found, name, config, who)
    owners = tuple(dict.fromkeys(name.rpartition(".")[0] for name in parameters))
    _check_nested(found, (*targets, *owners), saved, who)
    _check_shared(found, (*targets, *owners), saved, who)
    check_dtypes(torch.float32, adapter_dtype, who=who)
    specs = _make_specs(found, (*targets, *parameters), config, who)
    check_starts(model, {name: specs[name] for name in targets}, who)
    biases = _biases(model, found, config, targets, saved)
    record = AdapterRecord(config, specs, saved, biases, parameters)
    replaced = (*targets, *owners, *saved)
    places = {name: found.names[id(found.modules[name])] for name in replaced}
    return Plan(adapter_name, adapter_dtype, record, places, notices(found, record, who))


def warn(plan: Plan) -> None:
    """Say what the user of :func:`gralora.inject` should know."""
    for text in plan.warnings:
        warnings.warn(text, UserWarning, stacklevel=3)


def _check_model(model: object, config: object, who: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{who}: model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(config, GraLoRAConfig):
        raise TypeError(f"{who}: config must be a GraLoRAConfig, got {type(config).__name__}")
    if is_linear(model) or isinstance(model, MergeableLayer):
        raise TypeError(
            f"{who}: model must hold the layers to adapt, got a {type(model).__name__} itself "
            "(use GraLoRALinear.from_linear, GraLoRAConv1D.from_conv1d or GraLoRAWrapper)"
        )
    for name, module in model.named_modules():
        if unwrap(module) is not module:
            where = f"{name}, " if name else ""
            raise ValueError(
                f"{who}: model must not be wrapped yet, got {where}a {type(module).__name__} "
                "(inject before wrapping in DistributedDataParallel, and before torch.compile)"
            )
        # PEFT's layers have this attribute; importing PEFT to ask for their class is not needed.
        if hasattr(type(module), "adapter_layer_names"):
            raise ValueError(
                f"{who}: model must hold no adapters of PEFT, got {name}, a "
                f"{type(module).__module__}.{type(module).__qualname__} (merge_and_unload() or "
                "unload() them first)"
            )
        if isinstance(module, MergeableLayer) and module.merged:
            raise RuntimeError(
                f"{who}: no adapter may be merged, got {module.merged_adapters} in {name} "
                "(unmerge() first)"
            )
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"{who}: the parameters of a model must have shapes, got {name}, whose module is "
                "lazy (call the model once first)"
            )


def _check_name(model: nn.Module, config: GraLoRAConfig, adapter_name: str, who: str) -> None:
    records = injection_state(model).records
    taken = dict.fromkeys(records)
    for module in model.modules():
        if isinstance(module, MergeableLayer):
            taken |= dict.fromkeys(module.adapters)
    if adapter_name in taken:
        raise ValueError(
            f"{who}: adapter_name must be new, got {adapter_name!r} "
            f"(present: {', '.join(map(repr, taken))})"
        )
    biased = [name for name, record in records.items() if record.config.bias != "none"]
    if config.bias != "none" and biased:
        raise ValueError(
            f"{who}: only one adapter of a model may train biases, got bias={config.bias!r} beside "
            f"{biased[0]!r} with bias={records[biased[0]].config.bias!r} "
            '(accepted: bias="none")'
        )


def _check_nested(
    found: Survey, targets: tuple[str, ...], saved: tuple[str, ...], who: str
) -> None:
    """Refuse targets and saved modules that lie in a target, which becomes a whole of its own."""
    adapted = {alias for name in targets for alias in found.names[id(found.modules[name])]}
    for name in (*targets, *saved):
        outer = owner(name.rpartition(".")[0], adapted)
        if outer is not None:
            raise ValueError(
                f"{who}: a target must not hold another target or a saved module, got {outer} with "
                f"{name} (leave one of them out with exclude_modules)"
            )


def _check_shared(
    found: Survey, targets: tuple[str, ...], saved: tuple[str, ...], who: str
) -> None:
    """Refuse targets whose weight a saved module has too, or that are in a module tied to one."""
    weights: dict[int, str] = {}
    for name in saved:
        module = found.modules[name]
        base = module.original_module if isinstance(module, SavedModule) else module
        for key, value in base.named_parameters():
            weights.setdefault(id(value), f"{name}.{key}")
    for name in targets:
        for key, parameter in own_parameters(found.modules[name]).items():
            if id(parameter) in weights and key != "bias":
                raise ValueError(
                    f"{who}: a saved module, or one tied to it, must not share a weight with a "
                    f"target, got {weights[id(parameter)]} and {name}.{key} (adapt it or save it, "
                    "not both)"
                )


def _make_specs(
    found: Survey, targets: tuple[str, ...], config: GraLoRAConfig, who: str
) -> dict[str, AdapterSpec]:
    ranks, grids = PatternTable(config.rank_pattern), PatternTable(config.k_pattern)
    alphas = PatternTable[float | None](config.alpha_pattern)
    specs = {}
    for name in targets:
        in_features, out_features = _widths(found, name)
        check_int(f"{who}: {name}", "in_features", in_features, 1)
        check_int(f"{who}: {name}", "out_features", out_features, 1)
        specs[name] = make_spec(
            in_features,
            out_features,
            r=ranks.value(name, config.r),
            k=grids.value(name, config.k),
            alpha=alphas.value(name, config.alpha),
            hybrid_r=config.hybrid_r,
            dropout=config.dropout,
            use_rslora=config.use_rslora,
            init_weights=config.init_weights,
            who=f"{who}: {name}",
        )
    return specs


def _widths(found: Survey, name: str) -> tuple[Any, Any]:
    """``(N, M)`` of a target, a module or a parameter."""
    if name in found.modules:
        return sizes(found.modules[name])
    owner, _, attribute = name.rpartition(".")
    return fused_sizes(found.modules[owner], attribute)[1:]


def _biases(
    model: nn.Module,
    found: Survey,
    config: GraLoRAConfig,
    targets: tuple[str, ...],
    saved: tuple[str, ...],
) -> tuple[str, ...]:
    if config.bias == "none":
        return ()
    modules = {"": model} | found.modules
    adapted, copied = frozenset(targets), frozenset(saved)
    biases: dict[int, str] = {}
    for name, module in modules.items():
        bias = None if isinstance(module, SavedModule) else own_parameters(module).get("bias")
        first = found.first_name(name) if name else name
        wanted = config.bias == "all" or first in adapted
        if bias is not None and wanted and not is_inside(first, copied):
            biases.setdefault(id(bias), f"{name}.bias" if name else "bias")
    return tuple(biases.values())
