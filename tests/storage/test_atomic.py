"""Replacing several files: whatever goes wrong, each holds its old content or its new one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from gralora.storage import atomic


def _writes(content: bytes) -> Any:
    def write(file: BinaryIO) -> None:
        file.write(content)

    return write


def _fails(file: BinaryIO) -> None:
    file.write(b"half")
    raise OSError(28, "No space left on device")


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with the old files and a foreign one."""
    for name, content in (("a", b"old a"), ("b", b"old b"), ("notes.tmp", b"mine")):
        (tmp_path / name).write_bytes(content)
    return tmp_path


NEW = [("a", _writes(b"new a")), ("b", _writes(b"new b"))]


def test_all_files_are_replaced_and_nothing_else_remains(old: Path) -> None:
    atomic.replace_files(old, NEW)
    assert _contents(old) == {"a": b"new a", "b": b"new b", "notes.tmp": b"mine"}


@pytest.mark.parametrize("failing", [0, 1], ids=["first file", "second file"])
def test_a_failed_write_changes_nothing_and_leaves_nothing(old: Path, failing: int) -> None:
    before = _contents(old)
    parts = list(NEW)
    parts[failing] = (parts[failing][0], _fails)
    with pytest.raises(OSError, match="No space left"):
        atomic.replace_files(old, parts)
    assert _contents(old) == before


def test_a_failed_first_rename_changes_nothing_and_leaves_nothing(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _contents(old)

    def refuse(source: Any, target: Any) -> None:
        raise OSError("refused")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="refused"):
        atomic.replace_files(old, NEW)
    assert _contents(old) == before


def test_a_failed_second_rename_keeps_its_file_as_a_leftover(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def only_first(source: Any, target: Path) -> None:
        if target.name == "b":
            raise OSError("refused")
        replace(source, target)

    monkeypatch.setattr(os, "replace", only_first)
    with pytest.raises(OSError, match="refused"):
        atomic.replace_files(old, NEW)
    assert (old / "a").read_bytes() == b"new a"
    assert (old / "b").read_bytes() == b"old b"
    assert [path.read_bytes() for path in atomic.leftovers(old, "b")] == [b"new b"]


def test_leftovers_go_with_the_next_call_and_foreign_files_stay(old: Path) -> None:
    stray = [f".a.{'0' * 32}.tmp", f".b.{'f' * 32}.tmp"]
    foreign = [".a.tmp", f".c.{'0' * 32}.tmp", f".a.{'g' * 32}.tmp", f"a.{'0' * 32}.tmp"]
    for name in stray + foreign:
        (old / name).write_bytes(b"x")
    atomic.replace_files(old, NEW)
    assert set(_contents(old)) == {"a", "b", "notes.tmp", *foreign}


def test_files_reach_the_disk_before_their_rename_and_the_folder_after_it(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    replace, fsync = os.replace, os.fsync

    def note_fsync(descriptor: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append("folder" if name == old.name else f"file {name.split('.')[1]}")
        fsync(descriptor)

    def note_replace(source: Any, target: Path) -> None:
        events.append(f"rename {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    atomic.replace_files(old, NEW)
    assert events == [
        "file a", "file b", "folder", "rename a", "folder", "rename b", "folder",
    ]  # fmt: skip


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic.replace_files(tmp_path, [("a", _writes(b"x"))])
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
