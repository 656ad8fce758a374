"""What adapter_config.json says about an adapter: PEFT's fields, with every choice resolved."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule

from gralora.injection.paths import Suffixes, is_inside
from gralora.injection.record import AdapterRecord
from gralora.nn import GraLoRAConv1D
from gralora.nn.choice import is_linear
from gralora.nn.spec import AdapterSpec
from gralora.storage.naming import list_or_expression
from gralora.storage.scale import bake, whole
from gralora.storage.stored_config import EXTENDED_TYPE, PEFT_TYPE


def describe(
    model: nn.Module, record: AdapterRecord, module_names: Iterable[str]
) -> dict[str, Any]:
    """The content of adapter_config.json for an adapter of `model`.

    Args:
        model: the unwrapped model, which gives its class and, from Transformers, its name.
        record: the adapter.
        module_names: full names of all modules of the bare model.

    Returns:
        PEFT's fields. `target_modules` holds full names, or where PEFT's rule for ends of names
        would find more, a regular expression of them. ``peft_type`` is ``"GRALORA_EXT"``, and
        patterns by full names are added, where PEFT could not build the same adapter.

    Raises:
        ValueError: a saved module's name is the end of another's.

    Warns:
        UserWarning: PEFT cannot load the result, and why.

    """
    specs = record.targets
    first = next(iter(specs.values()))
    names = list(module_names)
    layers = [model.get_submodule(name) for name in specs]
    content: dict[str, Any] = {
        "alpha": config_alpha(first),
        "auto_mapping": _auto_mapping(model, record),
        "base_model_name_or_path": _base_name(model, record),
        "bias": record.config.bias,
        # PEFT keeps what the last of its layers needed.
        "fan_in_fan_out": isinstance(layers[-1], GraLoRAConv1D),
        "gralora_dropout": first.dropout,
        "gralora_k": first.k_in,
        "hybrid_r": first.hybrid_r,
        "inference_mode": True,
        "init_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "modules_to_save": _saved_names(record, names),
        "peft_type": PEFT_TYPE,
        "peft_version": None,
        "r": first.r,
        "revision": None,
        "target_modules": list_or_expression(
            [name for name in specs if name not in record.parameters], names
        ),
        "task_type": record.config.task_type,
    }
    reason = _why_not_peft(record, layers)
    if reason is not None:
        content |= extension_fields(specs)
        if record.parameters:
            content["target_parameters"] = list(record.parameters)
        warnings.warn(
            f"save_adapter: PEFT cannot load this adapter, since {reason}; it is saved with "
            f'peft_type "{EXTENDED_TYPE}", which gralora.load_adapter reads',
            stacklevel=3,
        )
    return content


def config_alpha(spec: AdapterSpec) -> float:
    """The alpha from which PEFT computes the spec's scale."""
    if spec.use_rslora:
        return bake(spec.scaling, spec.r + spec.hybrid_r)
    return whole(spec.alpha)


def _auto_mapping(model: nn.Module, record: AdapterRecord) -> dict[str, str] | None:
    """The model's class, from which PEFT's AutoPeftModel builds it where no task is named."""
    if record.config.task_type is not None:
        return None
    kind = type(model)
    if isinstance(model, FSDPModule):
        # fully_shard puts a class of its own in front of the model's.
        kind = next(base for base in kind.__bases__ if base is not FSDPModule)
    return {"base_model_class": kind.__name__, "parent_library": kind.__module__}


def _base_name(model: nn.Module, record: AdapterRecord) -> str | None:
    if record.config.base_model_name_or_path is not None:
        return record.config.base_model_name_or_path
    name = model.__dict__.get("name_or_path")
    return name if isinstance(name, str) and name else None


def _saved_names(record: AdapterRecord, module_names: Iterable[str]) -> list[str] | None:
    # PEFT compares the ends of names here without looking for a dot.
    saved = Suffixes(record.saved_modules)
    for name in module_names:
        ends = saved.of(name)
        if ends and not is_inside(name, saved.texts):
            raise ValueError(
                "save_adapter: no other module's name may end in that of a saved module, got "
                f"{ends[0]} and {name}, which would be taken for it where the adapter is loaded"
            )
    return sorted(saved.texts) or None


def _why_not_peft(record: AdapterRecord, layers: Iterable[nn.Module]) -> str | None:
    specs = list(record.targets.values())
    if record.parameters:
        return "it adapts fused experts"
    if not all(is_linear(layer) for layer in layers):
        return "it adapts layers that are neither nn.Linear nor Conv1D"
    if any(spec.k_in != spec.k_out for spec in specs):
        return "its grids are not square"
    for what, values in (
        ("ranks", {spec.r for spec in specs}),
        ("grids", {spec.k_in for spec in specs}),
        ("scales", {spec.scaling for spec in specs}),
    ):
        if len(values) > 1:
            return f"its {what} differ between layers"
    return None


def extension_fields(specs: Mapping[str, AdapterSpec]) -> dict[str, Any]:
    """The fields of a config that only this package reads; alphas are the given ones."""
    first = next(iter(specs.values()))
    ordered = sorted(specs.items())
    return {
        "peft_type": EXTENDED_TYPE,
        "alpha": whole(first.alpha),
        "gralora_k": _grid(first),
        "use_rslora": first.use_rslora,
        "rank_pattern": {name: spec.r for name, spec in ordered if spec.r != first.r},
        "alpha_pattern": {
            name: whole(spec.alpha) for name, spec in ordered if spec.alpha != first.alpha
        },
        "k_pattern": {name: _grid(spec) for name, spec in ordered if _grid(spec) != _grid(first)},
    }


def _grid(spec: AdapterSpec) -> int | list[int]:
    return spec.k_in if spec.k_in == spec.k_out else [spec.k_out, spec.k_in]
