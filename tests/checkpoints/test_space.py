"""Room on the disk, asked for before anything is written, and memory that runs out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from checkpoints_on_disk import adapted, llama, save_adapter, save_base, shards, workspace

from gralora.checkpoints import merge
from gralora.checkpoints.merge import Progress, merge_checkpoint

NO_ROOM = "room for what is still to be written"


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with a base of several shards and an adapter."""
    model = llama()
    save_base(model, tmp_path / "base")
    save_adapter(adapted(model, 2), tmp_path / "adapter")
    return tmp_path


def _free(patch: pytest.MonkeyPatch, size: int) -> None:
    usage = type("Usage", (), {"free": size})
    patch.setattr(shutil, "disk_usage", lambda path: usage)


def _merge(inputs: Path, dtype: torch.dtype | None = None) -> None:
    merge_checkpoint(inputs / "base", inputs / "adapter", inputs / "out", dtype=dtype)


def _stop_at_the_last_shard(step: Progress) -> None:
    if step.position == step.shards:
        raise KeyboardInterrupt


def _interrupted(inputs: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        merge_checkpoint(
            inputs / "base", inputs / "adapter", inputs / "out", progress=_stop_at_the_last_shard
        )


def _bytes(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def test_files_beside_the_weights_count(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (inputs / "base" / "tokenizer.json").open("wb") as file:
        file.truncate(2**40)
    _free(monkeypatch, 2**40)
    with pytest.raises(OSError, match=NO_ROOM):
        _merge(inputs)
    assert not workspace(inputs / "out").exists()


def test_finished_shards_do_not_count(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupted(inputs)
    _free(monkeypatch, _bytes(shards(inputs / "base")) // 2)
    _merge(inputs)
    assert (inputs / "out").exists()


def test_finished_shards_of_another_dtype_count(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupted(inputs)
    left = shards(workspace(inputs / "out"))
    # Beside the old shards, each as large, there is no room for new ones twice their size.
    _free(monkeypatch, _bytes(left) // 2)
    with pytest.raises(OSError, match=NO_ROOM):
        _merge(inputs, torch.float64)
    assert shards(workspace(inputs / "out")) == left


def test_room_that_old_shards_give_up_counts(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupted(inputs)
    sizes = [path.stat().st_size for path in shards(inputs / "base")]
    beside = (inputs / "base" / "config.json").stat().st_size
    # One after the other, shards of half the size take the place of the old ones.
    _free(monkeypatch, max(sizes) + beside)
    _merge(inputs, torch.bfloat16)
    assert (inputs / "out").exists()


def test_memory_that_runs_out_is_told_with_what_is_left(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(merge, "write_side_files", fail)
    with pytest.raises(MemoryError, match=r"too little memory; 6 of 6 shards are kept in .*out"):
        _merge(inputs)
