"""Files that were changed at random: a clean error, or what an independent reader finds in them.

GRALORA_FUZZ=20 tries twenty times as many, ten thousand, and others each time.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import security_oracle as oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from security_changes import parts
from security_checks import check_clean, in_time, tree
from security_files import CONFIG, INDEX, SHARDS, TENSORS, write_adapter, write_base
from security_mutations import changed_bytes, changed_numbers, changed_tree, safetensors

from gralora.adapters.stored import StoredAdapter, read_adapter
from gralora.checkpoints.folder import open_checkpoint
from gralora.checkpoints.plan import make_plan
from gralora.checkpoints.stream import read_tensor
from gralora.storage.checked_file import open_regular

FACTOR = int(os.environ.get("GRALORA_FUZZ", "1"))
REFUSALS = (ValueError, TypeError, OSError)


def _fuzz(count: int) -> settings:
    return settings(
        max_examples=count * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Files:
    """An adapter and a base on disk of which one file at a time is another."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.adapter, self.base = write_adapter(root / "adapter"), write_base(root / "base")
        self._originals = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        self.before = set(tree(root))

    def original(self, path: Path) -> bytes:
        """What a file had at first."""
        return self._originals[path]

    def change(self, path: Path, content: bytes) -> None:
        """Let this file have other content, and all others their own."""
        for other, original in self._originals.items():
            if other.read_bytes() != original:
                other.write_bytes(original)
        path.write_bytes(content)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The valid files; they are valid again for the next test."""
    return Files(tmp_path_factory.mktemp("fuzz"))


def _found(adapter: StoredAdapter) -> dict[tuple[str, str], oracle.Bits]:
    """What the product read, by module and factor."""
    tensors: dict[tuple[str, str], Any] = {
        (module, factor): getattr(layer, factor)
        for module, layer in adapter.layers.items()
        for factor in ("A", "B", "lora_A", "lora_B")
        if getattr(layer, factor) is not None
    }
    for group in (adapter.biases, adapter.saved, adapter.frozen):
        tensors |= {(name, "whole"): value for name, value in group.items()}
    return {name: oracle.bits(value) for name, value in tensors.items()}


def _read_adapter(files: Files) -> StoredAdapter | None:
    """The adapter, once it is known to be right; None where it was refused."""
    try:
        adapter = read_adapter(files.adapter)
    except REFUSALS as error:
        check_clean(error, "read_adapter")
        return None
    assert _found(adapter) == oracle.adapter_names(oracle.read(files.adapter / TENSORS))
    return adapter


def _plan_merge(files: Files, adapter: StoredAdapter) -> None:
    """Everything that is read and checked before a merge writes."""
    try:
        base = open_checkpoint(files.base)
        plan = make_plan(base, [(adapter, 1.0)], dtype=None, layout=None)
    except REFUSALS as error:
        check_clean(error, "merge_checkpoint")
        return
    planned = {tensor.name for tensors in plan.shards.values() for tensor in tensors}
    wanted: dict[str, oracle.Bits] = {}
    for shard in base.shards:
        wanted |= oracle.read(files.base / shard.name)
        with open_regular(shard.path) as file:
            for key, entry in shard.header.tensors.items():
                value = read_tensor(file, shard.path, key, entry)
                assert oracle.bits(value) == wanted[key]
    assert planned - set(plan.added) == set(wanted)


def _try(files: Files, path: Path, content: bytes) -> None:
    """Read and plan with a file that has other content; nothing on the disk may change."""
    files.change(path, content)
    with in_time(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = _read_adapter(files)
        if adapter is not None:
            _plan_merge(files, adapter)
    assert set(tree(files.root)) == files.before
    assert path.read_bytes() == content


@_fuzz(160)
@given(data=st.data())
def test_changed_bytes(data: st.DataObject, files: Files) -> None:
    path = data.draw(
        st.sampled_from(
            [files.adapter / CONFIG, files.adapter / TENSORS, files.base / INDEX]
            + [files.base / name for name in (*SHARDS, "config.json")]
        )
    )
    _try(files, path, data.draw(changed_bytes(files.original(path))))


@_fuzz(120)
@given(data=st.data())
def test_changed_configs_and_indexes(data: st.DataObject, files: Files) -> None:
    path = data.draw(
        st.sampled_from([files.adapter / CONFIG, files.base / INDEX, files.base / "config.json"])
    )
    text = data.draw(changed_tree(json.loads(files.original(path))))
    _try(files, path, text.encode())


def _header_and_data(files: Files, path: Path) -> tuple[dict[str, Any], bytes]:
    files.change(path, files.original(path))
    return parts(path)


TENSOR_FILES = st.sampled_from([f"adapter/{TENSORS}", *(f"base/{name}" for name in SHARDS)])


@_fuzz(100)
@given(data=st.data(), name=TENSOR_FILES)
def test_changed_headers(data: st.DataObject, name: str, files: Files) -> None:
    header, rest = _header_and_data(files, files.root / name)
    _try(files, files.root / name, safetensors(data.draw(changed_tree(header)), rest))


@_fuzz(120)
@given(data=st.data(), name=TENSOR_FILES)
def test_changed_numbers_of_headers(data: st.DataObject, name: str, files: Files) -> None:
    header, rest = _header_and_data(files, files.root / name)
    text = data.draw(changed_numbers(header))
    ends = [entry["data_offsets"][1] for entry in json.loads(text).values()]
    # Bytes enough for a header that may be right.
    if 0 < max(ends) <= 2 * len(rest):
        rest = (rest * 2)[: max(ends)]
    _try(files, files.root / name, safetensors(text, rest))
