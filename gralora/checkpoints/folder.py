"""A base model as a folder of safetensors shards, opened without trust and without its tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gralora.checkpoints.paths import WHO, check_plain, locate
from gralora.injection.listing import some
from gralora.storage.checked_file import (
    MODEL_DTYPES,
    Entry,
    Header,
    open_regular,
    read_header,
    read_json,
)

CONFIG_NAME = "config.json"
INDEX_SUFFIX = ".index.json"
_SUFFIX = ".safetensors"
# In the order in which transformers and diffusers look for them.
_WHOLE = ("model.safetensors", "diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class Shard:
    """One file of tensors.

    Attributes:
        name: in the folder.
        path: where it really lies.
        header: checked.
        size: in bytes.

    """

    name: str
    path: Path
    header: Header
    size: int


@dataclass(frozen=True)
class Checkpoint:
    """A checked folder.

    Attributes:
        directory: the folder.
        shards: in the order of their names.
        index_name: of the index, or None for a model of one file.
        index: its content, or None.
        config: content of ``config.json``, or None where there is none.

    """

    directory: Path
    shards: tuple[Shard, ...]
    index_name: str | None
    index: Mapping[str, Any] | None
    config: Mapping[str, Any] | None

    @property
    def tensors(self) -> dict[str, Entry]:
        """Every tensor by its key."""
        return {key: entry for shard in self.shards for key, entry in shard.header.tensors.items()}


def open_checkpoint(directory: str | os.PathLike[str]) -> Checkpoint:
    """Read the index, the config and every shard's header, and check them against one another.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: no safetensors model, or several; a damaged or hostile file; an index whose
            names leave the folder or that disagrees with the shards.

    """
    folder = Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{WHO}: the base model must be an existing folder, got {folder} (a model of the "
            "Hugging Face Hub has to be downloaded first)"
        )
    index_name = _find(folder)
    index = weight_map = None
    if index_name.endswith(INDEX_SUFFIX):
        index = _json(folder, index_name)
        weight_map = _weight_map(index, folder / index_name)
        names = sorted(set(weight_map.values()))
    else:
        names = [index_name]
    shards = tuple(_open_shard(folder, name) for name in names)
    _check_keys(shards, weight_map, folder / index_name)
    config = _json(folder, CONFIG_NAME) if os.path.lexists(folder / CONFIG_NAME) else None
    return Checkpoint(folder, shards, index_name if index else None, index, config)


def _find(folder: Path) -> str:
    """Name of the index or of the one file that holds the model."""
    for whole in _WHOLE:
        for name in (whole, whole + INDEX_SUFFIX):
            if os.path.lexists(folder / name):
                return name
    present = sorted(os.listdir(folder))
    for suffix in (_SUFFIX + INDEX_SUFFIX, _SUFFIX):
        found = [name for name in present if name.endswith(suffix)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"{WHO}: {folder} must hold one model, got {some(found)} (expected "
                f"{_WHOLE[0]} or {_WHOLE[0]}{INDEX_SUFFIX})"
            )
    pickled = [name for name in present if name.endswith((".bin", ".pt", ".pth"))]
    why = f"; {some(pickled)} hold pickled code: save the model as safetensors" if pickled else ""
    raise FileNotFoundError(
        f"{WHO}: {folder} must hold {_WHOLE[0]} or {_WHOLE[0]}{INDEX_SUFFIX}, got "
        f"{some(present)}{why}"
    )


def _json(folder: Path, name: str) -> dict[str, Any]:
    path = locate(folder, name)
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"{WHO}: {error}") from None


def _weight_map(index: Mapping[str, Any], path: Path) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{WHO}: {path} must have a weight_map, an object that is not empty")
    for name in weight_map.values():
        if not check_plain(name, f"each shard in {path}").endswith(_SUFFIX):
            raise ValueError(f"{WHO}: each shard in {path} must end in {_SUFFIX}, got {name!r}")
    return weight_map


def _open_shard(folder: Path, name: str) -> Shard:
    try:
        path = locate(folder, name)
    except FileNotFoundError:
        raise FileNotFoundError(f"{WHO}: the shard {folder / name} is missing") from None
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            header = read_header(file, folder / name, dtypes=MODEL_DTYPES)
            return Shard(name, path, header, size)
    except ValueError as error:
        raise ValueError(f"{WHO}: {error}") from None


def _check_keys(
    shards: tuple[Shard, ...], weight_map: Mapping[str, str] | None, index: Path
) -> None:
    """Refuse tensors that two shards have, and an index that says otherwise than the shards."""
    homes: dict[str, str] = {}
    for shard in shards:
        for key in shard.header.tensors:
            other = homes.setdefault(key, shard.name)
            if other != shard.name:
                raise ValueError(
                    f"{WHO}: each tensor must be in one shard, got {key!r:.300} in {other} and in "
                    f"{shard.name}"
                )
    if weight_map is None or weight_map == homes:
        return
    wrong = sorted(key for key in {*weight_map, *homes} if weight_map.get(key) != homes.get(key))
    raise ValueError(
        f"{WHO}: {index} must say which shard has which tensor, got it wrong for {len(wrong)}: "
        f"{some(map(repr, wrong))}"
    )
