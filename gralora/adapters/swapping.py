"""load_into: another adapter's numbers into one that a model has, also a compiled model."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gralora.adapters.contents import BASE_LAYER, FACTOR_SUFFIXES
from gralora.adapters.stored import StoredAdapter, StoredExperts, StoredLayer, read_with_experts
from gralora.injection.listing import some
from gralora.injection.record import AdapterRecord, unwrap
from gralora.nn.spec import AdapterSpec
from gralora.storage.state_dict import gather, known_record, load_adapter_state_dict
from gralora.storage.tensor_names import PREFIX

WHO = "load_into"


def load_into(
    model: nn.Module, directory: str | os.PathLike[str], adapter_name: str = "default"
) -> None:
    """Replace the numbers of an adapter that a model has by those of an adapter on disk.

    Parameters stay the same objects at the same addresses: a compiled model keeps its code, a
    captured graph its pointers, an optimizer its state. Which adapters are active does not change.
    A scale other than the model's is multiplied into B and lora_B, since the model's never changes.
    The model's dropout stays.

    Under FSDP2 every rank has to call this.

    Args:
        model: injected; data-parallel or compiled wrappers are looked through.
        directory: of an adapter with the ranks, grids and layers of the one it replaces, and with
            the same kinds of biases and whole modules.
        adapter_name: the one to replace.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: an unknown name, an adapter of another shape or base model, or as
            :func:`gralora.adapters.stored.read_adapter` with ``safe=True``, but for fused experts.
        TypeError: tensors of integers.
        RuntimeError: the adapter is merged into a weight.

    In each case nothing has changed.

    """
    record = known_record(model, adapter_name, WHO)
    stored = read_with_experts(directory, safe=True)
    _check_layers(record, stored)
    _check_base(unwrap(model), stored)
    load_adapter_state_dict(model, _state_dict(record, stored), adapter_name)


def _check_layers(record: AdapterRecord, stored: StoredAdapter) -> None:
    adapters = _adapters(stored)
    ours, theirs = record.targets.keys(), adapters.keys()
    if ours != theirs:
        parts = [
            f"{kind} {some(sorted(names))}"
            for kind, names in (("lacks", ours - theirs), ("also has", theirs - ours))
            if names
        ]
        raise ValueError(
            f"{WHO}: the adapter must adapt the layers that the model's does, got one that "
            f"{' and '.join(parts)}"
        )
    for name, spec in record.targets.items():
        other = adapters[name].spec
        if _shape(spec) != _shape(other):
            raise ValueError(
                f"{WHO}: {name} must have the model's {_in_words(spec)}, got {_in_words(other)} "
                "(load_adapter adds it under a name of its own)"
            )


def _adapters(stored: StoredAdapter) -> Mapping[str, StoredLayer | StoredExperts]:
    """By the name of the layer, or of the parameter."""
    return {**stored.layers, **stored.experts}


def _shape(spec: AdapterSpec) -> tuple[int, ...]:
    return spec.r, spec.k_out, spec.k_in, spec.hybrid_r


def _in_words(spec: AdapterSpec) -> str:
    return f"r={spec.r}, k=({spec.k_out}, {spec.k_in}), hybrid_r={spec.hybrid_r}"


def _check_base(model: nn.Module, stored: StoredAdapter) -> None:
    """Refuse an adapter whose copies of frozen weights are not the model's."""
    for name, value in stored.frozen.items():
        module, _, attribute = name.rpartition(".")
        try:
            own = getattr(model.get_submodule(module), attribute)
        except AttributeError:
            continue
        if isinstance(own, Tensor) and not torch.equal(gather(own.detach()).cpu(), value):
            raise ValueError(
                f"{WHO}: {name} is a frozen tensor of the base model and must equal the model's, "
                "got other values (the adapter was trained on another base model)"
            )


def _state_dict(record: AdapterRecord, stored: StoredAdapter) -> Mapping[str, Tensor]:
    values: dict[str, Tensor] = {}
    adapters = _adapters(stored)
    for name, spec in record.targets.items():
        factors = _rescaled(name, adapters[name], spec.scaling)
        for factor, value in factors.items():
            values[PREFIX + name + FACTOR_SUFFIXES[factor]] = value
    for name, value in stored.biases.items():
        module, _, attribute = name.rpartition(".")
        inner = BASE_LAYER if module in record.targets else "."
        values[PREFIX + module + inner + attribute] = value
    for name, value in stored.saved.items():
        values[PREFIX + name] = value
    return values


def _rescaled(name: str, layer: StoredLayer | StoredExperts, scaling: float) -> dict[str, Tensor]:
    """Factors that have the layer's ΔW at another scale."""
    factors = {
        factor: value
        for factor, value in zip(FACTOR_SUFFIXES, layer.factors, strict=True)
        if value is not None
    }
    if layer.spec.scaling == scaling:
        return factors
    if scaling == 0:
        raise ValueError(
            f"{WHO}: the scale of {name} must be the model's, which is 0, got {layer.spec.scaling}"
        )
    # In float64, so that the numbers are rounded only once, to the model's dtype.
    for factor in factors.keys() & {"B", "lora_B"}:
        factors[factor] = factors[factor].double() * (layer.spec.scaling / scaling)
    return factors
