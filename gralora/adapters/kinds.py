"""What lies in a folder that is not the adapter somebody took it for, and what is made for it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from gralora.injection.listing import some
from gralora.storage.checked_file import read_json
from gralora.storage.pair import CONFIG_NAME
from gralora.storage.stored_config import EXTENDED_TYPE, PEFT_TYPE

E = TypeVar("E", bound=Exception)

LORA_TYPE = "LORA"
_MODEL = "config.json"
# Looked at where a folder holds adapters in folders of their own.
_MOST = 1000
# Bytes of a config that is read again for a hint: parsed, it takes many times as much, and what the
# refused one took is not free yet.
_LONGEST = 2**20


def with_other_ways(error: E, path: Path, *, wanted: str = PEFT_TYPE) -> E:
    """The refusal of an adapter with what takes it, where that is known.

    Args:
        error: of a reader; the system's own is returned as it is.
        path: given as the folder of the adapter.
        wanted: ``"GRALORA"`` or ``"LORA"``, what it should have been.

    """
    if isinstance(error, OSError) and error.errno is not None:
        return error
    hint = other_ways(path, wanted=wanted)
    return type(error)(f"{error}; {hint}") if hint else error


def other_ways(path: Path, *, wanted: str = PEFT_TYPE) -> str:
    """What a path holds instead of an adapter and which command takes that, as a clause.

    Args:
        path: given as the folder of an adapter, which could not be read.
        wanted: ``"GRALORA"`` or ``"LORA"``, what it should have been.

    Returns:
        Nothing where the kind is the wanted one, or is not known.

    """
    try:
        if path.is_file():
            return "this is a file: give the folder that holds it beside its config"
        config = path / CONFIG_NAME
        if config.exists():
            if config.stat().st_size > _LONGEST:
                return ""
            return _of_another_kind(read_json(config), wanted)
        if (path / _MODEL).exists():
            return f"this is the folder of a model, since it has {_MODEL} and no {CONFIG_NAME}"
        inner = islice(path.iterdir(), _MOST)
        adapters = sorted(entry.name for entry in inner if (entry / CONFIG_NAME).is_file())
    except (OSError, ValueError):
        return ""
    return f"it has adapters in folders of their own: {some(adapters)}" if adapters else ""


def _of_another_kind(content: dict[str, Any], wanted: str) -> str:
    kind = content.get("peft_type")
    if kind == LORA_TYPE and content.get("use_dora"):
        return "PEFT's merge_and_unload merges a DoRA into its model"
    if kind == LORA_TYPE and wanted != LORA_TYPE:
        return "gralora import-lora writes it as a GraLoRA adapter"
    if kind in (PEFT_TYPE, EXTENDED_TYPE) and wanted == LORA_TYPE:
        return (
            "this is a GraLoRA adapter already: gralora inspect shows it, gralora export-lora "
            "writes it as LoRA"
        )
    return ""
