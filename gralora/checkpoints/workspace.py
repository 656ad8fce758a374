"""Where a merged model grows: a hidden folder beside its target, which becomes the target at last.

The folder holds finished shards and a journal with their digests, and is renamed when everything is
there. Until then it has no config and no index, so that nothing loads it. A later run with the same
adapters, on the same kind of device, takes over the shards whose digests, and whose source's, are
still those of the journal; others are written anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gralora.checkpoints.paths import TEMPLATES, WHO
from gralora.checkpoints.stream import CHUNK, Digests
from gralora.storage.checked_file import open_regular, read_json

JOURNAL_NAME = "gralora_merge.json"
_TEMPORARY = ".part"


@dataclass
class Workspace:
    """The folder of one merge.

    Attributes:
        path: of the hidden folder.
        target: what it becomes.
        settings: what all shards depend on.
        finished: by name of the shard, its digests and that of its plan.

    """

    path: Path
    target: Path
    settings: Mapping[str, Any]
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)

    def new_file(self) -> Path:
        """A fresh temporary name."""
        return self.path / f"{uuid.uuid4().hex}{_TEMPORARY}"

    def is_noted(self, name: str, plan: str) -> bool:
        """Whether an earlier run says that it wrote this shard by the same plan."""
        noted = self.finished.get(name)
        return noted is not None and bool(noted["plan"] == plan)

    def size_of(self, name: str) -> int:
        """Bytes that a shard takes on the disk; 0 where it is not there."""
        try:
            return (self.path / name).lstat().st_size
        except FileNotFoundError:
            return 0

    def is_finished(self, name: str, plan: str, source: Path) -> bool:
        """Whether an earlier run wrote this shard from the same source and plan, and it is whole.

        Raises:
            OSError: the source cannot be read.

        """
        if not self.is_noted(name, plan):
            return False
        noted = self.finished[name]
        try:
            if sha256(self.path / name) != noted["result"]:
                return False
        except (OSError, ValueError):
            return False
        return bool(sha256(source) == noted["source"])

    def keep(self, temporary: Path, name: str, plan: str, digests: Digests) -> None:
        """Give a shard that is on the disk its name, and note it."""
        os.replace(temporary, self.path / name)
        self.finished[name] = {"plan": plan, **asdict(digests)}
        self.note()

    def note(self) -> None:
        """Write the journal."""
        content = {**self.settings, "shards": dict(sorted(self.finished.items()))}
        self.write(JOURNAL_NAME, json.dumps(content, indent=2).encode() + b"\n")

    def write(self, name: str, content: bytes) -> None:
        """Write a small file as a whole."""
        self.copy(name, io.BytesIO(content))

    def copy(self, name: str, source: BinaryIO) -> None:
        """Write the rest of an open file as a whole, piece by piece; the name may have a folder."""
        temporary = self.new_file()
        with open(temporary, "xb") as file:
            shutil.copyfileobj(source, file, CHUNK)
            file.flush()
            os.fsync(file.fileno())
        target = self.path / name
        target.parent.mkdir(exist_ok=True)
        os.replace(temporary, target)
        for folder in {target.parent, self.path}:
            _sync(folder)

    def remove_others(self) -> None:
        """Remove what is neither the journal nor a shard that it notes."""
        for entry in list(os.scandir(self.path)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != JOURNAL_NAME and entry.name not in self.finished:
                os.unlink(entry.path)

    def publish(self) -> None:
        """Let the folder be the target.

        Raises:
            OSError: somebody has made the target meanwhile.

        """
        _sync(self.path)
        os.rename(self.path, self.target)
        _sync(self.target.parent)


@contextlib.contextmanager
def open_workspace(
    target: Path, settings: Mapping[str, Any], shards: Collection[str]
) -> Iterator[Workspace]:
    """Make or take over the folder for a target, for this process alone.

    What another adapter or device has left there is removed. The folder goes where the block fails
    before the first shard is finished, and stays otherwise.

    Args:
        target: absolute; absent, or an empty folder.
        settings: what all shards depend on, as JSON has it.
        shards: names of those that there will be.

    Raises:
        OSError: the folder cannot be made or another process is at work there.
        ValueError: a folder of that name that was not made here.

    """
    path = target.parent / f".{target.name}.merging"
    with _locked(path):
        noted = _take_over(path, settings)
        finished = {name: entry for name, entry in noted.items() if name in shards}
        work = Workspace(path, target, settings, finished)
        try:
            work.remove_others()
            work.note()
            yield work
        except BaseException:
            if path.exists():
                _tidy(work)
            raise


def _tidy(work: Workspace) -> None:
    """Leave finished shards for the next run, and nothing where there are none."""
    with contextlib.suppress(OSError):
        work.remove_others()
        if not work.finished:
            os.unlink(work.path / JOURNAL_NAME)
            os.rmdir(work.path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Make a folder if need be, and hold it; the lock goes with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{WHO}: another process is merging in {path}") from None
        except OSError:
            # A file system without locks is used without one.
            pass
        if not path.exists() or os.stat(path).st_ino != os.fstat(descriptor).st_ino:
            raise BlockingIOError(f"{WHO}: another process has finished merging in {path}")
        yield
    finally:
        os.close(descriptor)


def _take_over(path: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The shards noted there, if they are of the same settings.

    Raises:
        ValueError: the folder has something that no merge leaves.

    """
    present = sorted(os.listdir(path))
    strange = [name for name in present if not _is_left(path / name)]
    ours = JOURNAL_NAME in present or all(name.endswith(_TEMPORARY) for name in present)
    if strange or not ours:
        raise ValueError(
            f"{WHO}: {path} must be absent or left by a merge, got a folder with "
            f"{(strange or present)[0]!r} (move it away)"
        )
    try:
        noted = read_json(path / JOURNAL_NAME)
    except (OSError, ValueError):
        return {}
    shards = noted.pop("shards", None)
    if noted != settings or not isinstance(shards, dict):
        return {}
    return {name: entry for name, entry in shards.items() if _is_entry(entry)}


def _is_left(path: Path) -> bool:
    """Whether it is a plain file, or the folder of templates with nothing but such files."""
    if path.name == TEMPLATES and path.is_dir() and not path.is_symlink():
        return all(entry.is_file(follow_symlinks=False) for entry in os.scandir(path))
    return path.is_file() and not path.is_symlink()


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and entry.keys() == {"plan", "source", "result", "size"}


def sha256(path: Path) -> str:
    """Digest of a file's content.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file.

    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
