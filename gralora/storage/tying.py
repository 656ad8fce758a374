"""Saved modules that are tied in the model, and files that have two values for one tensor.

PEFT trains ``lm_head`` apart from the embedding it is tied to: such a file has one of the two, or
both with different values. The outputs are then those of untied copies.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from gralora.injection.record import AdapterRecord
from gralora.injection.saved_module import SavedModule
from gralora.storage.config_values import WHO
from gralora.storage.tensor_names import PREFIX, Wanted, live_tensors


def drop_partners(
    wanted: Mapping[str, Wanted], record: AdapterRecord, keys: Collection[str]
) -> dict[str, Wanted]:
    """What a file must hold, without modules that it does not name and has nothing of.

    Such modules are saved here only since they are tied to one that the file names.
    """
    named = record.config.modules_to_save or ()
    dropped: set[str] = set()
    for name in record.saved_modules:
        own = {key for key in wanted if key.startswith(f"{PREFIX}{name}.")}
        if name not in named and not own & set(keys):
            dropped |= own
    return {key: want for key, want in wanted.items() if key not in dropped}


def separate(
    model: nn.Module, record: AdapterRecord, adapter_name: str, values: Mapping[str, Tensor]
) -> None:
    """Untie an adapter's copies of those modules for which a file has no common values.

    Args:
        model: injected.
        record: the adapter's.
        adapter_name: its name.
        values: from the file, by key.

    Warns:
        UserWarning: copies were untied.

    """
    groups: dict[int, list[str]] = {}
    for key, tensor in live_tensors(model, record, adapter_name).items():
        groups.setdefault(id(tensor), []).append(key)
    keys = [key for group in groups.values() if not _agree(group, values) for key in group]
    names = [
        name
        for name in record.saved_modules
        if any(key.startswith(f"{PREFIX}{name}.") for key in keys)
    ]
    for name in names:
        saved = model.get_submodule(name)
        assert isinstance(saved, SavedModule)
        saved.add_copy(adapter_name, copy.deepcopy(saved.original_module))
        saved.set_adapter([adapter_name])
    if names:
        warnings.warn(
            f"{WHO}: the file has no common values for {', '.join(names)}, which are tied in the "
            "model; the adapter's copies of them are not tied",
            stacklevel=3,
        )


def _agree(group: list[str], values: Mapping[str, Tensor]) -> bool:
    if len(group) == 1:
        return True
    if any(key not in values for key in group):
        return False
    return all(torch.equal(values[group[0]], values[key]) for key in group[1:])
