"""write_adapter: an adapter's two files, without a model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gralora.adapters.contents import BASE_LAYER, FACTOR_SUFFIXES, sort_tensors
from gralora.adapters.destination import made
from gralora.adapters.stored import StoredExperts, StoredLayer
from gralora.config import Bias, GraLoRAConfig
from gralora.injection.listing import some
from gralora.injection.record import AdapterRecord
from gralora.nn.spec import AdapterSpec, make_spec
from gralora.storage.checked_file import Entry
from gralora.storage.config_values import WHO as READER
from gralora.storage.pair import write_pair
from gralora.storage.peft_config import config_alpha, extension_fields
from gralora.storage.rslora import remember_alpha
from gralora.storage.stored_config import EXTENDED_TYPE, PEFT_TYPE, parse_config
from gralora.storage.tensor_names import PREFIX

WHO = "write_adapter"


def write_adapter(
    directory: str | os.PathLike[str],
    layers: Mapping[str, StoredLayer],
    *,
    experts: Mapping[str, StoredExperts] | None = None,
    biases: Mapping[str, Tensor] | None = None,
    saved: Mapping[str, Tensor] | None = None,
    modules_to_save: Iterable[str] | None = None,
    bias: Bias | None = None,
    base_model_name_or_path: str | None = None,
    task_type: str | None = None,
) -> None:
    """Write layers as an adapter that PEFT and :func:`gralora.load_adapter` load.

    Where PEFT could not build the same adapter (grids that are not square, ranks, grids or scales
    that differ between layers, fused experts) the files say ``GRALORA_EXT``, so that PEFT refuses
    them. A process that is killed meanwhile leaves the earlier adapter of that folder or the new
    one. Equal adapters give equal files.

    Args:
        directory: created where it is missing.
        layers: by full module names; of one `hybrid_r`, dropout and `use_rslora`.
        experts: of fused parameters, by their full names, those of one module in its own order;
            likewise. There must be a layer or a parameter.
        biases: trained biases by full tensor names, as in :class:`StoredAdapter`.
        saved: tensors of modules that are saved as a whole, by full tensor names.
        modules_to_save: ends of those modules' names; None means the modules that hold `saved`.
        bias: PEFT's setting; None means the narrowest one that `biases` fit.
        base_model_name_or_path: what the adapter belongs to.
        task_type: PEFT's.

    Raises:
        OSError: the files cannot be written; an earlier adapter is still there.
        TypeError: a dtype that cannot be saved.
        ValueError: layers that one config cannot describe, or factors, names or values that
            :func:`read_adapter` would refuse.

    Warns:
        UserWarning: PEFT cannot load the result, and why.

    """
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{WHO}: directory must be a folder, got {folder}")
    experts, biases, saved = dict(experts or {}), dict(biases or {}), dict(saved or {})
    specs = _checked_specs(layers, experts)
    if modules_to_save is None:
        modules_to_save = {name.rpartition(".")[0] for name in saved}
    first = next(iter(specs.values()))
    content: dict[str, Any] = {
        "alpha": config_alpha(first),
        "auto_mapping": None,
        "base_model_name_or_path": base_model_name_or_path,
        "bias": _bias_setting(layers, biases) if bias is None else bias,
        "fan_in_fan_out": False,
        "gralora_dropout": first.dropout,
        "gralora_k": first.k_in,
        "hybrid_r": first.hybrid_r,
        "inference_mode": True,
        "init_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "modules_to_save": sorted(modules_to_save) or None,
        "peft_type": PEFT_TYPE,
        "peft_version": None,
        "r": first.r,
        "revision": None,
        "target_modules": sorted(layers),
        "task_type": task_type,
    }
    reason = why_not_peft(specs, experts)
    if reason is not None:
        content |= extension_fields(specs)
    if experts:
        content["target_parameters"] = list(experts)
    tensors = _tensors(layers, experts, biases, saved)
    _check_readable(content, tensors)
    if reason is not None:
        warnings.warn(
            f"{WHO}: PEFT cannot load this adapter, since {reason}; it is saved with peft_type "
            f'"{EXTENDED_TYPE}", which gralora.load_adapter reads',
            stacklevel=2,
        )
    notes = remember_alpha(AdapterRecord(GraLoRAConfig(), specs, (), ()))
    with made(folder):
        write_pair(folder, content, tensors, notes)


def _checked_specs(
    layers: Mapping[str, StoredLayer], experts: Mapping[str, StoredExperts]
) -> dict[str, AdapterSpec]:
    """What each layer and each parameter is, once one config can say it."""
    both = layers.keys() & experts.keys()
    if both:
        raise ValueError(
            f"{WHO}: a name must be that of a layer or of a parameter, got {some(sorted(both))}"
        )
    # The experts of a parameter are alike.
    one_each = {**layers, **{name: stored.layers[0] for name, stored in experts.items()}}
    if not one_each:
        raise ValueError(f"{WHO}: layers must hold at least one, got none")
    specs = {name: layer.spec for name, layer in one_each.items()}
    for what in ("hybrid_r", "dropout", "use_rslora"):
        values = {getattr(spec, what) for spec in specs.values()}
        if len(values) > 1:
            raise ValueError(
                f"{WHO}: {what} must be the same in all layers, got "
                f"{', '.join(map(str, sorted(values)))}"
            )
    for name, spec in specs.items():
        layer = one_each[name]
        own = make_spec(
            layer.in_features,
            layer.out_features,
            r=spec.r,
            k=(spec.k_out, spec.k_in),
            alpha=spec.alpha,
            hybrid_r=spec.hybrid_r,
            dropout=spec.dropout,
            use_rslora=spec.use_rslora,
            who=f"{WHO}: {name}",
        )
        if own != spec:
            raise ValueError(
                f"{WHO}: the scaling of {name} must follow from its alpha and rank, got "
                f"{spec.scaling}, not {own.scaling}"
            )
    return specs


def why_not_peft(specs: Mapping[str, AdapterSpec], parameters: Collection[str] = ()) -> str | None:
    """The reason why PEFT cannot reproduce an adapter, or None where it can.

    Args:
        specs: of its layers and parameters, by name.
        parameters: names of those that are fused experts.

    """
    if parameters:
        return "it adapts fused experts"
    if any(spec.k_in != spec.k_out for spec in specs.values()):
        return "its grids are not square"
    for what, values in (
        ("ranks", {spec.r for spec in specs.values()}),
        ("grids", {spec.k_in for spec in specs.values()}),
        ("scales", {spec.scaling for spec in specs.values()}),
    ):
        if len(values) > 1:
            return f"its {what} differ between layers"
    return None


def _bias_setting(layers: Mapping[str, StoredLayer], biases: Mapping[str, Tensor]) -> Bias:
    if not biases:
        return "none"
    own = {f"{name}.bias" for name in layers}
    return "gralora_only" if biases.keys() <= own else "all"


def _tensors(
    layers: Mapping[str, StoredLayer],
    experts: Mapping[str, StoredExperts],
    biases: Mapping[str, Tensor],
    saved: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    adapters: dict[str, StoredLayer | StoredExperts] = {**layers, **experts}
    for name, each in adapters.items():
        for factor, value in zip(FACTOR_SUFFIXES, each.factors, strict=True):
            if value is not None:
                tensors[PREFIX + name + FACTOR_SUFFIXES[factor]] = value
    for name, value in biases.items():
        module, _, attribute = name.rpartition(".")
        inner = BASE_LAYER if module in layers else "."
        tensors[PREFIX + module + inner + attribute] = value
    for name, value in saved.items():
        tensors[PREFIX + name] = value
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def _check_readable(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse what :func:`read_adapter` would refuse, before anything is written."""
    entries = {key: Entry(value.dtype, tuple(value.shape), 0, 0) for key, value in tensors.items()}
    try:
        sort_tensors(parse_config(content), entries)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{WHO}: {str(error).removeprefix(f'{READER}: ')}") from None
