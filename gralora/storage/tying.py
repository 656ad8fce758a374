"""Saved modules that are tied in the model, and files that have two values for one tensor.

PEFT trains ``lm_head`` apart from the embedding it is tied to: such a file has one of the two, or
both with different values. The outputs are then those of untied copies.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from gralora.injection.paths import is_inside, owner
from gralora.injection.record import AdapterRecord
from gralora.injection.saved_module import SavedModule
from gralora.storage.config_values import WHO
from gralora.storage.tensor_names import PREFIX, Wanted


def drop_partners(
    wanted: Mapping[str, Wanted], record: AdapterRecord, keys: Collection[str]
) -> dict[str, Wanted]:
    """What a file must hold, without modules that it does not name and has nothing of.

    Such modules are saved here only since they are tied to one that the file names.
    """
    kept = {
        *(record.config.modules_to_save or ()),
        *_saved_owners(record, wanted.keys() & set(keys)),
    }
    dropped = set(record.saved_modules) - kept
    return {
        key: want
        for key, want in wanted.items()
        if not is_inside(key.removeprefix(PREFIX), dropped)
    }


def separate(
    live: Mapping[str, Tensor],
    record: AdapterRecord,
    adapter_name: str,
    modules: Mapping[str, nn.Module],
    values: Mapping[str, Tensor],
) -> None:
    """Untie an adapter's copies of those modules for which a file has no common values.

    Args:
        live: the adapter's tensors, by key; those of untied copies are others afterwards.
        record: the adapter's.
        adapter_name: its name.
        modules: its saved modules by name, where it is not active yet.
        values: from the file, by key.

    Warns:
        UserWarning: copies were untied.

    """
    groups: dict[int, list[str]] = {}
    for key, tensor in live.items():
        groups.setdefault(id(tensor), []).append(key)
    keys = [key for group in groups.values() if not _agree(group, values) for key in group]
    untied = _saved_owners(record, keys)
    names = [name for name in record.saved_modules if name in untied]
    for name in names:
        saved = modules[name]
        assert isinstance(saved, SavedModule)
        saved.add_copy(adapter_name, copy.deepcopy(saved.original_module))
    if names:
        warnings.warn(
            f"{WHO}: the file has no common values for {', '.join(names)}, which are tied in the "
            "model; the adapter's copies of them are not tied",
            stacklevel=6,
        )


def _saved_owners(record: AdapterRecord, keys: Iterable[str]) -> set[str]:
    """The saved modules that keys of a file belong to."""
    saved = frozenset(record.saved_modules)
    owners = (owner(key.removeprefix(PREFIX), saved) for key in keys)
    return {name for name in owners if name is not None}


def _agree(group: list[str], values: Mapping[str, Tensor]) -> bool:
    if len(group) == 1:
        return True
    if any(key not in values for key in group):
        return False
    return all(torch.equal(values[group[0]], values[key]) for key in group[1:])
