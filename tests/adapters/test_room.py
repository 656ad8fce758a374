"""How much memory is free, as files of Linux tell it, and refusals where it is too little."""

from __future__ import annotations

from pathlib import Path

import pytest

from gralora.adapters import room
from gralora.adapters.room import check_room, free_memory

GIB = 2**30


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def _machine(kilobytes: int, swap: int = 0) -> dict[str, str]:
    return {
        "proc/meminfo": f"MemTotal: 99999999 kB\nMemAvailable:   {kilobytes} kB\n"
        f"HugePages_Total:       0\nSwapFree: {swap} kB\n"
    }


def _group(path: str, limit: str, used: int, **files: int) -> dict[str, str]:
    folder = f"sys/fs/cgroup{path}"
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": "".join(f"{name} {size}\n" for name, size in files.items()),
    }


OWN = {"proc/self/cgroup": "4:memory:/old\n0::/a/b\n"}


def test_a_machine_leaves_what_is_available_and_swap(tmp_path: Path) -> None:
    assert free_memory(_write(tmp_path, _machine(1000, 24))) == 1024 * 1024


def test_a_group_leaves_its_limit_but_for_what_it_uses(tmp_path: Path) -> None:
    files = _machine(10**9) | OWN | _group("/a/b", str(GIB), GIB // 4)
    assert free_memory(_write(tmp_path, files)) == GIB * 3 // 4


def test_files_that_a_group_keeps_in_memory_do_not_count(tmp_path: Path) -> None:
    own = _group("/a/b", str(GIB), GIB, inactive_file=300, active_file=20, anon=7)
    assert free_memory(_write(tmp_path, _machine(10**9) | OWN | own)) == 320


def test_the_limit_of_an_outer_group_holds(tmp_path: Path) -> None:
    groups = _group("/a", "5000", 1000) | _group("/a/b", "max", 900)
    assert free_memory(_write(tmp_path, _machine(10**9) | OWN | groups)) == 4000


def test_the_limit_of_a_container_at_the_top_holds(tmp_path: Path) -> None:
    files = _machine(10**9) | {"proc/self/cgroup": "0::/\n"} | _group("", "5000", 1000)
    assert free_memory(_write(tmp_path, files)) == 4000


def test_a_group_above_its_limit_leaves_nothing(tmp_path: Path) -> None:
    assert free_memory(_write(tmp_path, OWN | _group("/a/b", "100", 200))) == 0


def test_a_system_without_these_files_does_not_tell(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None


@pytest.mark.parametrize("free", [None, GIB], ids=["unknown", "enough"])
def test_room_that_is_there_or_unknown_is_taken(
    free: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_memory", lambda: free)
    check_room(GIB, "it", who="test")


def test_too_little_room_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda: GIB)
    message = r"^test: it must fit into memory, got 2\.1 GB for 1\.1 GB that are free"
    with pytest.raises(MemoryError, match=message):
        check_room(2 * GIB, "it", who="test")
