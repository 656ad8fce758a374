"""The files beside the weights: which go along, which do not and why, and what changes in them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gralora.checkpoints.folder import CONFIG_NAME, INDEX_SUFFIX, Checkpoint
from gralora.checkpoints.paths import TEMPLATES, locate
from gralora.checkpoints.plan import MergePlan
from gralora.checkpoints.workspace import JOURNAL_NAME, Workspace
from gralora.storage.checked_file import open_regular

_TEXTS = frozenset(
    {".json", ".jsonl", ".txt", ".md", ".jinja", ".model", ".tiktoken", ".vocab", ".bpe", ".spm",
     ".yaml", ".yml"}
)  # fmt: skip
_UNNAMED = frozenset({"LICENSE", "LICENCE", "NOTICE", "README", "COPYING", "USE_POLICY"})
# Mistral's tokenizers carry the number of their version.
_NUMBERED = re.compile(r"tokenizer\.model\.v[0-9]+")
_CODE = frozenset({".py", ".so", ".sh", ".pyc", ".dll", ".ipynb"})
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"})
_TYING = "tie_word_embeddings"


@dataclass(frozen=True)
class SideFiles:
    """What happens to the files beside the weights.

    Attributes:
        copied: names of those that go along, with the folder's where they lie in one.
        left_out: names of those that do not, with the reason.
        size: bytes of all that go along.

    """

    copied: tuple[str, ...]
    left_out: Mapping[str, str]
    size: int


def sort_side_files(base: Checkpoint, *, with_code: bool) -> SideFiles:
    """Look at every name in the folder.

    Args:
        base: the checkpoint.
        with_code: let Python files go along.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file that would go along is a link that leads out, or no regular file.

    """
    own = {*(shard.name for shard in base.shards), base.index_name, JOURNAL_NAME}
    copied, left_out, size = [], {}, 0
    for name in _names(base.directory):
        if name in own:
            continue
        reason = _why_not(base.directory, name, with_code=with_code)
        if reason is None:
            with open_regular(locate(base.directory, name)) as file:
                size += os.fstat(file.fileno()).st_size
            copied.append(name)
        else:
            left_out[name] = reason
    return SideFiles(tuple(copied), left_out, size)


def _names(directory: Path) -> Iterator[str]:
    """What lies in the folder, with that of templates opened."""
    for name in sorted(os.listdir(directory)):
        if name == TEMPLATES and (directory / name).is_dir():
            yield from (f"{name}/{inner}" for inner in sorted(os.listdir(locate(directory, name))))
        else:
            yield name


def _why_not(directory: Path, name: str, *, with_code: bool) -> str | None:
    """Why a file does not go along, or None."""
    path = directory / name
    suffix = path.suffix.lower()
    if path.is_dir():
        return "a folder"
    if "/" in name:
        return None if suffix == ".jinja" else "no template"
    if path.name == "adapter_config.json":
        return "transformers would look for an adapter"
    if path.name.endswith(INDEX_SUFFIX):
        return "the index of other weights"
    if suffix == ".py" and with_code:
        return None
    if suffix in _CODE:
        return "code"
    if suffix in _PICKLES:
        return "pickled, or weights in another format"
    if suffix in _TEXTS or path.name.split(".")[0].upper() in _UNNAMED:
        return None
    if _NUMBERED.fullmatch(path.name):
        return None
    return "weights in another format" if suffix == ".safetensors" else "of an unknown kind"


def write_side_files(
    work: Workspace,
    base: Checkpoint,
    plan: MergePlan,
    files: SideFiles,
    dtype: torch.dtype | None,
) -> None:
    """Copy what goes along, then write the config and the index, changed where they have to be.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: a file is a link that leads out of the folder, or no regular file.

    """
    for name in files.copied:
        if name == CONFIG_NAME and base.config is not None and (dtype is not None or plan.untied):
            work.write(name, _config(base.config, dtype, untied=plan.untied))
        else:
            _copy(work, base, name)
    if base.index_name is not None and base.index is not None:
        if dtype is not None or plan.added:
            work.write(base.index_name, _index(base.index, plan))
        else:
            _copy(work, base, base.index_name)


def _copy(work: Workspace, base: Checkpoint, name: str) -> None:
    with open_regular(locate(base.directory, name)) as file:
        work.copy(name, file)


def _config(config: Mapping[str, Any], dtype: torch.dtype | None, *, untied: bool) -> bytes:
    changed = dict(config)
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        for key in _dtype_keys(changed) or ["torch_dtype"]:
            changed[key] = name
        for key, inner in changed.items():
            if isinstance(inner, dict):
                changed[key] = {**inner, **dict.fromkeys(_dtype_keys(inner), name)}
    if untied:
        changed[_TYING] = False
        text = changed.get("text_config")
        if isinstance(text, dict) and _TYING in text:
            changed["text_config"] = {**text, _TYING: False}
    return json.dumps(changed, indent=2).encode() + b"\n"


def _dtype_keys(config: Mapping[str, Any]) -> list[str]:
    """Fields that name a dtype; transformers has renamed ``torch_dtype`` to ``dtype``."""
    return [key for key in ("torch_dtype", "dtype") if isinstance(config.get(key), str)]


def _index(index: Mapping[str, Any], plan: MergePlan) -> bytes:
    metadata = index.get("metadata")
    kept = dict(metadata) if isinstance(metadata, dict) else {}
    changed = {
        **index,
        "metadata": {**kept, "total_size": sum(tensor.size for tensor in plan.tensors)},
        "weight_map": dict(sorted(_homes(plan))),
    }
    return json.dumps(changed, indent=2).encode() + b"\n"


def _homes(plan: MergePlan) -> Iterator[tuple[str, str]]:
    for shard, tensors in plan.shards.items():
        for tensor in tensors:
            yield tensor.name, shard
