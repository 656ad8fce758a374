"""Memory before a refusal: bounded by the limits and by what really lies on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from security_files import (
    CONFIG,
    INDEX,
    PREFIX,
    SHARDS,
    TENSORS,
    adapter_header,
    shard_headers,
    write_adapter,
    write_base,
    write_safetensors,
)
from security_memory import growth

from gralora.adapters.stored import read_adapter
from gralora.checkpoints.folder import open_checkpoint
from gralora.checkpoints.merge import merge_checkpoint

MIB = 2**20
# What the interpreter takes for the refusal itself, an import of a codec included.
SLACK = 8 * MIB


def _terabytes(folder: Path, name: str, header: dict[str, object], key: str) -> None:
    """Let the last tensor claim 4 TiB that the file does not have."""
    entry = header[key]
    assert isinstance(entry, dict)
    start = entry["data_offsets"][0]
    entry.update(shape=[2**40], data_offsets=[start, start + 2**42])
    write_safetensors(folder / name, header, bytes(start + 64))


def _adapter(folder: Path) -> None:
    _terabytes(folder, TENSORS, adapter_header(), f"{PREFIX}norm.bias")


def _shard(folder: Path) -> None:
    _terabytes(folder, SHARDS[1], shard_headers()[SHARDS[1]], "norm.bias")


def _claimed(name: str, length: int) -> Callable[[Path], None]:
    return lambda folder: write_safetensors(folder / name, "{}", b"", claimed=length)


def _sparse(name: str) -> Callable[[Path], None]:
    """A file of 64 GiB that takes no place on the disk."""

    def write(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(2**36)

    return write


CASES: dict[str, tuple[Callable[[Path], None], Callable[[Path], object], int]] = {
    "tensor of 4 TiB in an adapter": (_adapter, read_adapter, 0),
    "tensor of 4 TiB in a shard": (_shard, open_checkpoint, 0),
    "header of 100 MB in an adapter": (_claimed(TENSORS, 100_000_000), read_adapter, 0),
    "header of 100 MB in a shard": (_claimed(SHARDS[0], 100_000_000), open_checkpoint, 0),
    "header of 2^63 bytes in an adapter": (_claimed(TENSORS, 2**63), read_adapter, 0),
    "header of 2^63 bytes in a shard": (_claimed(SHARDS[0], 2**63), open_checkpoint, 0),
    "tensors of 64 GiB of NULs": (_sparse(TENSORS), read_adapter, 0),
    "shard of 64 GiB of NULs": (_sparse(SHARDS[0]), open_checkpoint, 0),
    # 16 MiB are read before more is refused.
    "config of 64 GiB": (_sparse(CONFIG), read_adapter, 32 * MIB),
    "index of 64 GiB": (_sparse(INDEX), open_checkpoint, 32 * MIB),
    "config of a base of 64 GiB": (_sparse("config.json"), open_checkpoint, 32 * MIB),
}


@pytest.mark.parametrize("case", CASES)
def test_a_claim_takes_no_memory(case: str, tmp_path: Path) -> None:
    write, read, limit = CASES[case]
    write_adapter(tmp_path)
    write_base(tmp_path)
    # Whatever a first refusal imports is there already.
    with pytest.raises((ValueError, OSError)):
        read_adapter(tmp_path / CONFIG)
    write(tmp_path)

    def refuse() -> None:
        with pytest.raises(ValueError, match=r"^(read_adapter|merge_checkpoint): "):
            read(tmp_path)

    assert growth(refuse) <= limit + SLACK


def test_json_takes_a_bounded_multiple_of_its_length(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    # Of what was tried, objects around empty lists grow most: to 34 times their length.
    bomb = json.dumps({"x": [{"": []}] * 500_000}, separators=(",", ":"))
    (tmp_path / CONFIG).write_text(bomb)

    def refuse() -> None:
        with pytest.raises(ValueError, match="peft_type must be"):
            read_adapter(tmp_path)

    assert growth(refuse) <= 40 * len(bomb) + SLACK


def test_files_beside_the_weights_take_no_memory(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter")
    with (tmp_path / "base" / "tokenizer.json").open("wb") as file:
        file.truncate(256 * MIB)

    def merge() -> None:
        merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")

    assert growth(merge) < 64 * MIB
    assert (tmp_path / "out" / "tokenizer.json").stat().st_size == 256 * MIB
