"""What every hostile input has to end in: a clean error, in time, with nothing written."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import NoReturn

_LONGEST = 3000


def check_clean(error: BaseException, *who: str, named: str = "") -> None:
    """Fail unless the error is a sentence of one of these functions, or the system's own.

    The system's has a number and the name of the file; the product's says `named`.
    """
    assert type(error) in (ValueError, TypeError, RuntimeError) or isinstance(error, OSError), repr(
        error
    )
    system = isinstance(error, OSError) and error.errno is not None and error.filename is not None
    assert system or str(error).startswith(tuple(f"{name}: " for name in who)), repr(error)
    assert named in str(error), repr(error)
    assert 0 < len(str(error)) < _LONGEST
    assert "\n" not in str(error)


def tree(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder: kind, rights, time of the last change and content."""
    return {str(path.relative_to(folder)): _facts(path) for path in folder.rglob("*")}


def _facts(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return found.st_mode, os.readlink(path)
    if stat.S_ISREG(found.st_mode):
        # A sparse file of terabytes is known by its size.
        content = sha256(path.read_bytes()).hexdigest() if found.st_size < 2**24 else ""
        return found.st_mode, found.st_mtime_ns, found.st_size, content
    # The time of a folder changes with files that come and go in it.
    return (found.st_mode,)


@contextlib.contextmanager
def in_time(seconds: int = 20) -> Iterator[None]:
    """Fail where something waits for a pipe or a regular expression."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise AssertionError(f"still at work after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
