"""Names and sizes that other libraries trip over: refused or served, never an error of theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from security_changes import parts
from security_checks import check_clean, tree
from security_files import (
    INDEX,
    PREFIX,
    SHARDS,
    TENSORS,
    write_adapter,
    write_base,
    write_safetensors,
)

from gralora.adapters.stored import read_adapter
from gralora.checkpoints.merge import merge_checkpoint
from gralora.cli import main

EMPTY = {"dtype": "F32", "data_offsets": [0, 0]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A good adapter and a good base."""
    write_adapter(tmp_path / "adapter")
    write_base(tmp_path / "base")
    return tmp_path


def _add(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Put an empty tensor in front of a file's others."""
    header, data = parts(path)
    write_safetensors(path, {name: {**EMPTY, **entry}, **header}, data)


def _add_to_base(root: Path, name: str, entry: dict[str, Any]) -> None:
    _add(root / "base" / SHARDS[0], name, entry)
    path = root / "base" / INDEX
    index = json.loads(path.read_text())
    index["weight_map"][name] = SHARDS[0]
    path.write_text(json.dumps(index))


def _merge(root: Path, *options: str) -> Any:
    command = ["merge", str(root / "base"), str(root / "adapter"), str(root / "out"), *options]
    return CliRunner().invoke(main, command)


def test_empty_tensors_are_converted(root: Path) -> None:
    _add_to_base(root, "empty", {"shape": [0]})
    assert _merge(root, "--dtype", "bfloat16").exit_code == 0


@pytest.mark.parametrize("shape", [[0, 2**62, 2**62], [2**62, 2**62, 0]], ids=["first", "last"])
def test_empty_tensors_of_huge_sizes_are_refused_in_a_base(shape: list[int], root: Path) -> None:
    _add_to_base(root, "empty", {"shape": shape})
    before = tree(root)
    with pytest.raises(ValueError, match="size") as caught:
        merge_checkpoint(root / "base", root / "adapter", root / "out")
    check_clean(caught.value, "merge_checkpoint")
    assert tree(root) == before


def test_empty_tensors_of_huge_sizes_are_refused_in_an_adapter(root: Path) -> None:
    _add(root / "adapter" / TENSORS, f"{PREFIX}norm.x", {"shape": [0, 2**62, 2**62]})
    with pytest.raises(ValueError, match="size") as caught:
        read_adapter(root / "adapter")
    check_clean(caught.value, "read_adapter")


@pytest.mark.parametrize("what", ["tensor", "metadata"])
def test_half_characters_are_refused(what: str, root: Path) -> None:
    if what == "tensor":
        _add_to_base(root, "\ud800", {"shape": [0]})
    else:
        path = root / "base" / SHARDS[0]
        header, data = parts(path)
        write_safetensors(path, {"__metadata__": {"x": "\ud800"}, **header}, data)
    before = tree(root)
    with pytest.raises(ValueError, match="whole characters") as caught:
        merge_checkpoint(root / "base", root / "adapter", root / "out")
    check_clean(caught.value, "merge_checkpoint")
    assert tree(root) == before


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_empty_tensors_of_the_largest_sizes_are_converted(dtype: str, root: Path) -> None:
    _add_to_base(root, "empty", {"shape": [2**59, 0]})
    assert _merge(root, "--dtype", dtype).exit_code == 0


def test_a_tensor_whose_name_is_long_is_refused_in_a_short_message(root: Path) -> None:
    _add(root / "base" / SHARDS[0], "x" * 10**6, {"shape": [1]})
    result = _merge(root)
    assert result.exit_code == 1
    assert "gives 'xxx" in result.stderr
    assert len(result.stderr) < 1000
