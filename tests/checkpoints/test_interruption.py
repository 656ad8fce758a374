"""Merges that are killed, run out of disk or meet a bad shard: what they leave, how they go on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from checkpoints_on_disk import (
    adapted,
    contents,
    llama,
    save_adapter,
    save_base,
    shards,
    workspace,
)

from gralora.checkpoints import stream
from gralora.checkpoints import workspace as workspaces
from gralora.checkpoints.merge import Progress, merge_checkpoint

SUPPORT = Path(__file__).parent / "support"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base of several shards and two adapters."""
    root = tmp_path_factory.mktemp("inputs")
    model = llama()
    save_base(model, root / "base")
    save_adapter(adapted(model, 2), root / "adapter")
    save_adapter(adapted(model, 3), root / "other")
    return root


@pytest.fixture(scope="module")
def whole(inputs: Path) -> dict[str, bytes]:
    """What a merge gives that nobody interrupts."""
    merge_checkpoint(inputs / "base", inputs / "adapter", inputs / "whole")
    return contents(inputs / "whole")


class Stopped(BaseException):
    """Stands for Ctrl-C at a chosen moment."""


def _stop_at(shard: int) -> Any:
    def progress(step: Progress) -> None:
        if step.position == shard:
            raise Stopped

    return progress


def _stopped(inputs: Path, out: Path, shard: int, **settings: Any) -> None:
    with pytest.raises(Stopped):
        merge_checkpoint(
            inputs / "base", inputs / "adapter", out, progress=_stop_at(shard), **settings
        )
    assert not out.exists()


SEEDS = [str(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def killed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Merges that were killed again and again: their outputs and how often, by seed."""
    outs = tmp_path_factory.mktemp("killed")
    command = [sys.executable, SUPPORT / "checkpoints_killed_merge.py", inputs, outs, *SEEDS]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    return outs, json.loads(result.stdout)


@pytest.mark.parametrize("seed", SEEDS)
def test_after_kills_at_random_moments_the_result_is_the_same_to_the_byte(
    seed: str, killed: tuple[Path, dict[str, Any]], whole: dict[str, bytes]
) -> None:
    outs, counts = killed
    assert counts[seed]["kills"] > 0
    assert contents(outs / seed) == whole


@pytest.mark.parametrize("shard", [2, 4, 6])
def test_shards_that_were_finished_are_taken_over(
    shard: int, inputs: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _stopped(inputs, out, shard)
    assert len(shards(workspace(out))) == shard - 1
    report = merge_checkpoint(inputs / "base", inputs / "adapter", out)
    assert report.resumed == shard - 1
    assert contents(out) == whole


def test_an_unfinished_merge_is_no_model(inputs: Path, tmp_path: Path) -> None:
    _stopped(inputs, tmp_path / "out", 6)
    left = {path.name for path in workspace(tmp_path / "out").iterdir()}
    assert not left & {"config.json", "model.safetensors.index.json", "model.safetensors"}


def test_a_merge_that_finished_nothing_leaves_nothing(inputs: Path, tmp_path: Path) -> None:
    _stopped(inputs, tmp_path / "out", 1)
    assert list(tmp_path.iterdir()) == []


def test_other_adapters_start_anew(inputs: Path, tmp_path: Path) -> None:
    merge_checkpoint(inputs / "base", inputs / "other", tmp_path / "wanted")
    _stopped(inputs, tmp_path / "out", 4)
    report = merge_checkpoint(inputs / "base", inputs / "other", tmp_path / "out")
    assert report.resumed == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "wanted")


def test_another_weight_starts_anew(inputs: Path, tmp_path: Path) -> None:
    _stopped(inputs, tmp_path / "out", 4)
    report = merge_checkpoint(inputs / "base", [(inputs / "adapter", 0.5)], tmp_path / "out")
    assert report.resumed == 0


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_shard_that_was_damaged_meanwhile_is_written_anew(
    inputs: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _stopped(inputs, out, 4)
    _flip(shards(workspace(out))[1], -1)
    report = merge_checkpoint(inputs / "base", inputs / "adapter", out)
    assert report.resumed == 2
    assert contents(out) == whole


def test_a_base_that_was_changed_meanwhile_is_read_anew(inputs: Path, tmp_path: Path) -> None:
    base = shutil.copytree(inputs / "base", tmp_path / "base")
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        merge_checkpoint(base, inputs / "adapter", out, progress=_stop_at(4))
    changed = shards(base)[1]
    before = changed.stat()
    _flip(changed, -1)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    report = merge_checkpoint(base, inputs / "adapter", out)
    merge_checkpoint(base, inputs / "adapter", tmp_path / "wanted")
    assert report.resumed == 2
    assert contents(out) == contents(tmp_path / "wanted")


def test_another_dtype_takes_nothing_over(inputs: Path, tmp_path: Path) -> None:
    _stopped(inputs, tmp_path / "out", 4)
    adapter = inputs / "adapter"
    report = merge_checkpoint(inputs / "base", adapter, tmp_path / "out", dtype=torch.float16)
    merge_checkpoint(inputs / "base", adapter, tmp_path / "wanted", dtype=torch.float16)
    assert report.resumed == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "wanted")


@pytest.mark.parametrize("text", ["", "{", '{"shards": {"model.safetensors": 3}}', "[]"])
def test_a_damaged_journal_starts_anew(
    text: str, inputs: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _stopped(inputs, out, 4)
    (workspace(out) / "gralora_merge.json").write_text(text)
    assert merge_checkpoint(inputs / "base", inputs / "adapter", out).resumed == 0
    assert contents(out) == whole


def test_a_folder_that_no_merge_has_left_is_not_touched(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    workspace(out).mkdir()
    (workspace(out) / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"must be absent or left by a merge.*thesis\.txt"):
        merge_checkpoint(inputs / "base", inputs / "adapter", out)
    assert (workspace(out) / "thesis.txt").read_text() == "mine"


def test_a_second_process_is_turned_away(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def progress(step: Progress) -> None:
        if step.position == 3:
            with pytest.raises(BlockingIOError, match="another process is merging in"):
                merge_checkpoint(inputs / "base", inputs / "adapter", out)

    merge_checkpoint(inputs / "base", inputs / "adapter", out, progress=progress)
    assert (out / "config.json").exists()


@pytest.mark.parametrize("call", [1, 2, 9, 14, 20])
def test_a_full_disk_leaves_no_output_and_a_clear_message(
    call: int,
    inputs: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, calls, write = tmp_path / "out", iter(range(1, 10_000)), os.write

    def failing(descriptor: int, data: Any) -> int:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(stream.os, "write", failing)
        with pytest.raises(OSError, match="No space left on device") as caught:
            merge_checkpoint(inputs / "base", inputs / "adapter", out)
    finished = len(shards(workspace(out))) if workspace(out).exists() else 0
    said = f"{finished} of 6 shards are kept in" if finished else "nothing was written"
    assert said in str(caught.value)
    assert not out.exists()
    assert not list(tmp_path.rglob("*.part"))
    merge_checkpoint(inputs / "base", inputs / "adapter", out)
    assert contents(out) == whole


def test_a_full_disk_under_the_small_files_leaves_no_output(
    inputs: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, copy = tmp_path / "out", workspaces.Workspace.copy

    def failing(self: Any, name: str, source: BinaryIO) -> None:
        if name == "config.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copy(self, name, source)

    with monkeypatch.context() as patch:
        patch.setattr(workspaces.Workspace, "copy", failing)
        with pytest.raises(OSError, match="6 of 6 shards are kept"):
            merge_checkpoint(inputs / "base", inputs / "adapter", out)
    assert not out.exists()
    assert merge_checkpoint(inputs / "base", inputs / "adapter", out).resumed == 6
    assert contents(out) == whole


# No file of the process may become longer than 12 kB, as under a quota. A process of its own: where
# this one's output goes to a longer file, it could not even say what failed.
_LIMITED = """
import resource, sys
from pathlib import Path
from gralora.checkpoints import merge_checkpoint

hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))
try:
    merge_checkpoint(*map(Path, sys.argv[1:]))
except OSError as error:
    print(error)
"""


def test_a_limit_of_the_operating_system_leaves_no_output(inputs: Path, tmp_path: Path) -> None:
    assert max(path.stat().st_size for path in shards(inputs / "base")) > 12_000
    folders = [inputs / "base", inputs / "adapter", tmp_path / "out"]
    child = subprocess.run(
        [sys.executable, "-P", "-c", _LIMITED, *folders], capture_output=True, text=True, check=True
    )
    assert "File too large" in child.stdout
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.part"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("this user may not mount a small file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_full_in_the_middle_keeps_what_is_finished(
    inputs: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="room for what is still to be written"):
        merge_checkpoint(inputs / "base", inputs / "adapter", small_disk / "out")
    # Others may fill a disk meanwhile.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 40}))
    with pytest.raises(OSError, match=r"No space left on device; . of 6 shards are kept in"):
        merge_checkpoint(inputs / "base", inputs / "adapter", small_disk / "out")
    assert [path.name for path in small_disk.iterdir()] == [".out.merging"]
    assert len(shards(workspace(small_disk / "out"))) >= 1


def test_a_disk_that_is_too_small_is_seen_before_anything_is_written(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        OSError, match=r"must have room.* 1\.0 kB free for [\d.]+ [kM]B.*nothing was"
    ):
        merge_checkpoint(inputs / "base", inputs / "adapter", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_shard_is_refused_before_anything_is_written(
    inputs: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(inputs / "base", tmp_path / "base")
    last = shards(base)[-1]
    os.truncate(last, last.stat().st_size - 1)
    with pytest.raises(ValueError, match=rf"{last.name} is truncated"):
        merge_checkpoint(base, inputs / "adapter", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("change", [-7, 7], ids=["shorter", "longer"])
def test_a_shard_that_changes_while_it_is_read_is_an_error(
    change: int, inputs: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(inputs / "base", tmp_path / "base")
    last = shards(base)[-1]

    def progress(step: Progress) -> None:
        if step.position == 2:
            os.truncate(last, last.stat().st_size + change)
            raise_once.clear()

    raise_once = [True]

    def once(step: Progress) -> None:
        if raise_once:
            progress(step)

    with pytest.raises(OSError, match=rf"{last.name} .*while it was read; 5 of 6 shards are kept"):
        merge_checkpoint(base, inputs / "adapter", tmp_path / "out", progress=once)
    assert not (tmp_path / "out").exists()


def test_a_result_that_is_not_finite_leaves_nothing(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be finite, got an Inf or NaN in .* as float16"):
        merge_checkpoint(
            inputs / "base", [(inputs / "adapter", 1e6)], tmp_path / "out", dtype=torch.float16
        )
    assert list(tmp_path.iterdir()) == []
