"""rsLoRA in PEFT's files: the scale is baked into alpha, and the alpha that was given is noted.

PEFT's config has no field for rsLoRA here: it would warn about one and use a wrong scale. The note
lies in the tensors' metadata, so that an adapter loads with the very scale it was trained with,
also where no alpha has it as its exact quotient.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping

from gralora.injection.record import AdapterRecord
from gralora.storage.config_values import WHO, number
from gralora.storage.scale import bake, whole
from gralora.storage.stored_config import StoredConfig

_NOTE = "gralora_rslora_alpha"


def remember_alpha(record: AdapterRecord) -> dict[str, str]:
    """Metadata to save with an adapter: empty without rsLoRA."""
    first = next(iter(record.targets.values()))
    return {_NOTE: json.dumps(whole(first.alpha))} if first.use_rslora else {}


def restore_alpha(stored: StoredConfig, metadata: Mapping[str, str]) -> StoredConfig:
    """The config with the alpha that was given, where the tensors' metadata has it.

    Raises:
        ValueError: the note is no number, or not the one whose scale the config has.

    """
    if _NOTE not in metadata or stored.use_rslora:
        return stored
    try:
        alpha = number(_NOTE, json.loads(metadata[_NOTE]))
    except (ValueError, RecursionError):
        alpha = math.nan
    rank = stored.r + stored.hybrid_r
    if bake(alpha / math.sqrt(rank), rank) != stored.alpha:
        raise ValueError(
            f"{WHO}: {_NOTE} of the tensors must give the config's scale, got "
            f"{metadata[_NOTE]!r:.50} with alpha={stored.alpha}, rank {rank}"
        )
    return dataclasses.replace(stored, alpha=alpha, use_rslora=True)
