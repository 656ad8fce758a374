"""The two files of an adapter, and how they are known to belong together.

The tensors carry the digest of the config that was saved with them. Both files are replaced one
after the other, tensors first: whoever is killed in between leaves new tensors, the old config, and
the new config under its temporary name. The digest tells which one to take. Files written by PEFT
carry no digest and are taken as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

from torch import Tensor

from gralora.storage.atomic import leftovers, locked, replace_files
from gralora.storage.checked_file import Header, open_regular, read_header, read_json
from gralora.storage.config_values import WHO
from gralora.storage.stored_config import digest
from gralora.storage.tensor_file import write_tensors

P = ParamSpec("P")
T = TypeVar("T")

CONFIG_NAME = "adapter_config.json"
TENSORS_NAME = "adapter_model.safetensors"
_PICKLE_NAME = "adapter_model.bin"
_DIGEST = "gralora_config_sha256"


@dataclass(frozen=True)
class OpenPair:
    """An adapter's files, the tensors still unread.

    Attributes:
        content: of the config, as JSON gave it.
        header: of the tensors, checked.
        file: to read them from.

    """

    content: dict[str, Any]
    header: Header
    file: BinaryIO


def write_pair(
    directory: Path,
    content: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    notes: Mapping[str, str],
) -> None:
    """Replace both files of an adapter, so that whoever reads finds the old pair or the new one.

    Args:
        directory: existing folder.
        content: of the config.
        tensors: contiguous, on the CPU.
        notes: more metadata of the tensors.

    Raises:
        OSError: a file cannot be written; the old pair is still there.

    """
    for name in (CONFIG_NAME, TENSORS_NAME):
        if (directory / name).is_dir():
            raise IsADirectoryError(f"save_adapter: {directory / name} must not be a folder")
    text = json.dumps(content, indent=2, sort_keys=True)
    # "format" is PEFT's.
    metadata = {"format": "pt", _DIGEST: digest(content), **notes}
    replace_files(
        directory,
        [
            (TENSORS_NAME, lambda file: write_tensors(file, tensors, metadata)),
            (CONFIG_NAME, lambda file: _write_text(file, text)),
        ],
    )


@contextmanager
def open_pair(directory: Path) -> Iterator[OpenPair]:
    """Open an adapter for reading; nobody who respects locks writes meanwhile.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is damaged, or the two do not belong together.

    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{WHO}: directory must be an existing folder, got {directory}")
    path = directory / TENSORS_NAME
    if not path.exists():
        why = ""
        if (directory / _PICKLE_NAME).exists():
            why = f"; {_PICKLE_NAME} holds pickled code, save it anew as safetensors with PEFT"
        raise FileNotFoundError(f"{WHO}: {directory} must hold {TENSORS_NAME}{why}")
    with locked(directory, exclusive=False), _named(open_regular, path) as file:
        header = _named(read_header, file, path)
        yield OpenPair(_find_config(directory, header.metadata.get(_DIGEST)), header, file)


def in_folder(error: Exception, directory: Path, *, who: str) -> Exception:
    """The refusal of an adapter with its folder, under the name of the function that was called.

    Args:
        error: of a reader, which opens with :data:`WHO`; the system's own is returned as it is.
        directory: the adapter's.
        who: opens the result.

    """
    if isinstance(error, OSError) and error.errno is not None:
        return error
    text = str(error).removeprefix(f"{WHO}: ")
    return type(error)(f"{who}: {'' if _names(text, directory) else f'{directory}: '}{text}")


def _names(text: str, directory: Path) -> bool:
    """Whether a refusal says which folder; a folder's name alone may be any word of it."""
    name = str(directory)
    if os.sep in name:
        return name in text
    return text.startswith((f"{name} ", f"{name}{os.sep}", f"{name}: ")) or (
        text.endswith(f", got {name}") or f" {name}{os.sep}" in text
    )


def _find_config(directory: Path, wanted: str | None) -> dict[str, Any]:
    path = directory / CONFIG_NAME
    content = _named(read_json, path) if path.exists() else None
    if content is not None and (wanted is None or digest(content) == wanted):
        return content
    if wanted is not None:
        for leftover in leftovers(directory, CONFIG_NAME):
            candidate = _read_leftover(leftover)
            if candidate is not None and digest(candidate) == wanted:
                return candidate
    if content is None:
        raise FileNotFoundError(f"{WHO}: {directory} must hold {CONFIG_NAME}")
    raise ValueError(
        f"{WHO}: {CONFIG_NAME} and {TENSORS_NAME} in {directory} do not belong together: the "
        "tensors were saved with another config, or it was changed since; save the adapter again"
    )


def _named(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `read` returns; its refusals get the name of the function that users called."""
    try:
        return read(*args, **kwargs)
    except ValueError as error:
        raise ValueError(f"{WHO}: {error}") from None


def _read_leftover(path: Path) -> dict[str, Any] | None:
    """Content of a config under its temporary name, or None where its writer did not finish."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _write_text(file: BinaryIO, text: str) -> None:
    file.write(text.encode())
