"""Replaces files as a whole, so that whoever is killed leaves the old content or the new one.

Every file is written under a temporary name beside its target, forced to the disk and renamed.
Renames come one after the other: a kill between two of them leaves later files old, with their new
content complete under the temporary name, where :func:`leftovers` finds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

Part = tuple[str, Callable[[BinaryIO], None]]


@contextlib.contextmanager
def locked(directory: Path, *, exclusive: bool) -> Iterator[int]:
    """Hold a folder's lock, shared among readers or for one writer; yields its descriptor.

    The lock goes with the process. File systems without locks are used without one.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield descriptor
    finally:
        os.close(descriptor)


def replace_files(directory: Path, parts: Sequence[Part]) -> None:
    """Write files beside their targets, then rename them in the order given.

    Leftovers of earlier calls that were killed are removed at the end.

    Args:
        directory: existing folder.
        parts: name of each file, and what writes its content.

    Raises:
        OSError: writing failed. Before the first rename, nothing has changed and no temporary file
            remains; after it, the temporary files of the later parts remain.

    """
    with locked(directory, exclusive=True) as folder:
        temporaries: list[tuple[Path, Path]] = []
        renamed = False
        try:
            for name, write in parts:
                temporary = directory / f".{name}.{uuid.uuid4().hex}.tmp"
                temporaries.append((temporary, directory / name))
                _write(temporary, write)
            os.fsync(folder)
            for temporary, target in temporaries:
                os.replace(temporary, target)
                renamed = True
                os.fsync(folder)
        except BaseException:
            if not renamed:
                _remove([temporary for temporary, _ in temporaries])
            raise
        for name, _ in parts:
            _remove(leftovers(directory, name))


def leftovers(directory: Path, name: str) -> list[Path]:
    """Temporary files that :func:`replace_files` left for `name`, in the order of their names."""
    pattern = re.compile(re.escape(f".{name}.") + r"[0-9a-f]{32}\.tmp")
    return sorted(path for path in directory.iterdir() if pattern.fullmatch(path.name))


def _write(path: Path, write: Callable[[BinaryIO], None]) -> None:
    with open(path, "xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
