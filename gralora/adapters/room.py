"""Whether the memory that some work will take is there, asked before it is taken.

An adapter of a few megabytes can stand for matrices of terabytes: their sizes grow with ``k*r``.
Systems promise more memory than they have and stop whoever uses it, so that one has to ask.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gralora.adapters.words import size

# Less is there, or the process would not have come so far; asking takes time.
_ALWAYS = 2**28


def check_room(needed: int, what: str, *, who: str) -> None:
    """Raise where too little memory is free.

    Args:
        needed: bytes at the peak.
        what: takes them; "the LoRA".
        who: opens the error.

    Raises:
        MemoryError: fewer bytes are free.

    """
    if needed <= _ALWAYS:
        return
    free = free_memory()
    if free is not None and needed > free:
        raise MemoryError(
            f"{who}: {what} must fit into memory, got {size(needed)} for {size(free)} that "
            "are free (the size grows with k*r)"
        )


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take, swap included; None where the system does not tell.

    The least of what Linux calls available and of what each control group (version 2) of the
    process leaves, where a container's limit is found.

    Args:
        root: of the files that tell it.

    """
    found = [*_of_the_machine(root), *_of_groups(root)]
    return max(0, min(found)) if found else None


def _of_the_machine(root: Path) -> Iterator[int]:
    fields = _fields(root / "proc/meminfo")
    if "MemAvailable:" in fields:
        yield 1024 * (fields["MemAvailable:"] + fields.get("SwapFree:", 0))


def _of_groups(root: Path) -> Iterator[int]:
    top = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        if not line.startswith("0::/"):
            continue
        group = Path(os.path.normpath(f"{top}/{line[len('0::/') :]}"))
        while group.is_relative_to(top):
            limit, used = _text(group / "memory.max"), _text(group / "memory.current")
            if limit.isdigit() and used.isdigit():
                kept = _fields(group / "memory.stat")
                # Files that are read stay in memory until somebody else needs it.
                spare = kept.get("inactive_file", 0) + kept.get("active_file", 0)
                yield int(limit) - int(used) + spare
            group = group.parent


def _fields(path: Path) -> dict[str, int]:
    """Numbers by the word before them, one pair on each line."""
    pairs = (line.split()[:2] for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
