"""Tensors that PEFT stores beside an adapter's: frozen ones of the base model, and duplicates.

With the output head among its targets, PEFT stores the head's frozen weight; with ``bias="all"``,
the frozen biases of saved modules, and once more the trained ones, and a trained bias that has two
names in the model under both. They are accepted where they say nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gralora.injection.record import AdapterRecord
from gralora.injection.saved_module import SavedModule
from gralora.nn import GraLoRAWrapper
from gralora.storage.checked_file import Entry
from gralora.storage.config_values import WHO
from gralora.storage.state_dict import gather
from gralora.storage.tensor_names import PREFIX, Wanted, bias_keys


def split_extras(
    model: nn.Module,
    record: AdapterRecord,
    wanted: Mapping[str, Wanted],
    received: Mapping[str, Entry],
) -> tuple[dict[str, Entry], dict[str, Tensor | str]]:
    """Part the tensors of a file.

    Args:
        model: before injection.
        record: of the adapter to come.
        wanted: what it needs.
        received: what the file has.

    Returns:
        What remains to be compared with `wanted`, and by the keys of the others what each must be a
        copy of: a frozen tensor of the model, or another key's value.

    """
    rest: dict[str, Entry] = {}
    copies: dict[str, Tensor | str] = {}
    trained = {
        id(model.get_parameter(name)): key
        for key, name in zip(bias_keys(record), record.biases, strict=True)
    }
    for key, entry in received.items():
        if key in wanted:
            rest[key] = entry
            continue
        if _is_duplicate(key, record, wanted):
            continue
        own = _own_tensor(model, key)
        if own is not None and tuple(own.shape) == entry.shape and own.dtype == entry.dtype:
            copies[key] = trained.get(id(own), own)
        else:
            rest[key] = entry
    return rest, copies


def check_copies(copies: Mapping[str, Tensor | str], values: Mapping[str, Tensor]) -> None:
    """Raise unless the values equal what they must be copies of.

    Raises:
        ValueError: the file has other values for a frozen tensor, or two for one trained bias.

    """
    for key, own in copies.items():
        if isinstance(own, str):
            if own not in values or not torch.equal(values[own], values[key]):
                raise ValueError(
                    f"{WHO}: {key} and {own} are one tensor of the model and must have the same "
                    "values, got two"
                )
        elif not torch.equal(gather(own.detach()).cpu(), values[key]):
            raise ValueError(
                f"{WHO}: {key} is a frozen tensor of the base model and must equal the model's, "
                "got other values (the adapter was trained on another base model)"
            )


def _is_duplicate(key: str, record: AdapterRecord, wanted: Mapping[str, Wanted]) -> bool:
    """Whether PEFT stored a trained bias of a saved module a second time."""
    name, marker, inner = key.removeprefix(PREFIX).partition(".modules_to_save.")
    return (
        bool(marker)
        and record.config.bias == "all"
        and name in record.saved_modules
        and f"{PREFIX}{name}.{inner}" in wanted
    )


def _own_tensor(model: nn.Module, key: str) -> Tensor | None:
    """The base model's parameter or buffer that PEFT stores under a key."""
    path = key.removeprefix(PREFIX)
    for inside in (".base_layer.", ".original_module."):
        path = path.replace(inside, ".")
    owner, _, name = path.rpartition(".")
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        return None
    if isinstance(module, SavedModule):
        module = module.original_module
    if isinstance(module, GraLoRAWrapper):
        module = module.base_layer
    return module._parameters.get(name, module._buffers.get(name))
