"""Tensors of a file that belong to fused experts: those of one expert, with one size in front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gralora.injection.listing import some
from gralora.storage.checked_file import Entry
from gralora.storage.config_values import WHO
from gralora.storage.stored_config import StoredConfig


def of_one_expert(
    parameter: str, keys: Mapping[str, str], entries: Mapping[str, Entry]
) -> dict[str, Entry]:
    """What the file would say of the factors of a single expert, by key.

    Args:
        parameter: full name.
        keys: of its factors, by factor.
        entries: of the file.

    Raises:
        ValueError: factors of different numbers of experts, or of none.

    """
    counts = {entries[key].shape[:1] for key in keys.values()}
    if len(counts) != 1 or counts & {(), (0,)}:
        shapes = ", ".join(str(list(entries[key].shape)) for key in keys.values())
        raise ValueError(
            f"{WHO}: the factors of {parameter} must have the number of experts as their first "
            f"size, the same from 1 up, got {shapes}"
        )
    return {key: replace(entries[key], shape=entries[key].shape[1:]) for key in keys.values()}


def check_parameters(config: StoredConfig, present: Mapping[str, object]) -> None:
    """Raise ValueError where the config names parameters without factors.

    Args:
        config: of the adapter.
        present: by name, the parameters that the file has factors of.

    """
    lacking = [name for name in config.target_parameters if name not in present]
    if lacking:
        raise ValueError(
            f"{WHO}: target_parameters of the config must name parameters that the tensors adapt, "
            f"got {some(lacking)}"
        )
