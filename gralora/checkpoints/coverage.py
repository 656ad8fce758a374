"""Whether an adapter has every layer of the base that its list of targets names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from gralora.adapters.stored import StoredAdapter
from gralora.checkpoints.names import Renaming
from gralora.checkpoints.paths import WHO
from gralora.checkpoints.tied import EMBEDDINGS
from gralora.config import GraLoRAConfig
from gralora.injection import names
from gralora.injection.listing import some
from gralora.injection.paths import Suffixes
from gralora.storage.checked_file import Entry

_PLAIN_WORD = re.compile(r"[A-Za-z0-9_]+")
_SUFFIX = ".weight"
_EXPERTS, _PREDICTION = "experts", "mtp"


def check_coverage(
    adapter: StoredAdapter,
    renaming: Renaming,
    tensors: Mapping[str, Entry],
    config: Mapping[str, Any] | None,
) -> None:
    """Refuse an adapter of a smaller model, as :func:`gralora.load_adapter` does.

    A checkpoint does not say which of its matrices are linear layers of the model. Left out are
    those that transformers may not have as such: embeddings, experts (which it fuses) where the
    adapter has none, and layers behind the last one, which predict further tokens. Regular
    expressions of the adapter's config are not run, so targets that are one are not compared.

    Args:
        adapter: its modules are in the base.
        renaming: of its names.
        tensors: of the base.
        config: likewise.

    Raises:
        ValueError: layers that the list names have no factors.

    """
    stored = adapter.config
    if isinstance(stored.target_modules, str) or not all(
        _PLAIN_WORD.fullmatch(pattern) for pattern in stored.layers_pattern
    ):
        return
    rule = GraLoRAConfig(
        layers_to_transform=stored.layers_to_transform, layers_pattern=stored.layers_pattern
    )
    targeted, saved = names.NameMatcher(stored.target_modules), Suffixes(stored.modules_to_save)
    covered = {renaming(module) for module in adapter.layers}
    with_experts = any(_EXPERTS in module.split(".") for module in covered)
    last = _count_layers(config)
    lacking = []
    for key, entry in tensors.items():
        module = key.removesuffix(_SUFFIX)
        if len(entry.shape) != 2 or module == key or module in covered:
            continue
        name, parts = _name_of_adapter(module, renaming), module.split(".")
        if name is None or not targeted.matching(name) or _is_saved(name, saved):
            continue
        index = names.layer_index(GraLoRAConfig(), name)
        elsewhere = (
            parts[-1] in EMBEDDINGS
            or _PREDICTION in parts
            or (_EXPERTS in parts and not with_experts)
            or (last is not None and index is not None and index >= last)
        )
        if not elsewhere and names.is_in_wanted_layers(rule, name):
            lacking.append(module)
    if lacking:
        raise ValueError(
            f"{WHO}: the tensors must cover what target_modules names in the model, got none for "
            f"{some(sorted(lacking))} (the adapter is another model's, or incomplete)"
        )


def _name_of_adapter(module: str, renaming: Renaming) -> str | None:
    """What the adapter's model calls a module of the base; None for one beside that model."""
    if module in renaming.exact or not renaming.changes:
        return module
    if not module.startswith(renaming.new):
        return None
    return renaming.old + module.removeprefix(renaming.new)


def _is_saved(name: str, saved: Suffixes) -> bool:
    owners = accumulate(name.split("."), lambda owner, part: f"{owner}.{part}")
    return any(saved.of(owner) for owner in owners)


def _count_layers(config: Mapping[str, Any] | None) -> int | None:
    """How many layers the model has; None where the config does not say it, or for two parts."""
    if config is None or isinstance(config.get("vision_config"), dict):
        return None
    count = config.get("num_hidden_layers")
    return count if isinstance(count, int) and not isinstance(count, bool) else None
