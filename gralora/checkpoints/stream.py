"""Writes one merged shard from the base's, tensor by tensor, hashing what it reads and writes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from gralora.checkpoints.arithmetic import compute
from gralora.checkpoints.folder import Shard
from gralora.checkpoints.paths import WHO
from gralora.checkpoints.tensor_plan import TensorPlan
from gralora.storage.checked_file import MODEL_DTYPES, Entry, open_regular
from gralora.storage.tensor_file import bytes_of

CHUNK = 8 << 20
_NAMES = {dtype: name for name, dtype in MODEL_DTYPES.items()}

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Digests:
    """SHA-256 of a shard of the base and of the merged one, and the latter's size in bytes."""

    source: str
    result: str
    size: int


class HashingWriter:
    """A new file that knows the SHA-256 of what it holds."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)
        self._hash = hashlib.sha256()
        self._pool = ThreadPoolExecutor(2)
        self.size = 0

    def __enter__(self) -> HashingWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
        os.close(self._descriptor)

    def write(self, data: memoryview | bytes, *others: hashlib._Hash) -> None:
        """Write all of it; it is hashed meanwhile, into `others` too, and may change afterwards."""
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            rest = view[start : start + CHUNK]
            hashing = [self._pool.submit(to.update, rest) for to in (self._hash, *others)]
            try:
                self.size += len(rest)
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            finally:
                wait(hashing)

    def finish(self) -> str:
        """Force the file to the disk; return the digest."""
        os.fsync(self._descriptor)
        return self._hash.hexdigest()


def write_shard(
    shard: Shard,
    plans: Sequence[TensorPlan],
    target: Path,
    device: torch.device,
    advance: Advance,
) -> Digests:
    """Write what becomes of a shard; no more than one of its tensors is in memory at a time.

    Args:
        shard: of the base.
        plans: its tensors in the order of the file, then those that are added.
        target: a new file.
        device: where weights are merged.
        advance: told the bytes of the base that are done.

    Raises:
        OSError: reading or writing failed, or the shard changed since its header was checked.
        ValueError: a result that is not finite.

    """
    read = hashlib.sha256()
    with open_regular(shard.path) as file, HashingWriter(target) as output:
        first = min((e.start for e in shard.header.tensors.values()), default=shard.size)
        read.update(_read(file, shard.path, 0, first))
        advance(first)
        output.write(_header(plans, shard.header.metadata))
        for plan in plans:
            if plan.copied:
                assert plan.source is not None
                _copy(file, shard.path, plan.source, output, read, advance)
                continue
            base = None
            if plan.source is not None:
                base = read_tensor(file, shard.path, plan.name, plan.source)
                read.update(bytes_of(base))
            result = compute(plan, base, device)
            # Before the next one is read.
            del base
            output.write(bytes_of(result))
            del result
            if plan.source is not None:
                advance(plan.source.end - plan.source.start)
        if file.read(1):
            raise OSError(f"{WHO}: {shard.path} grew while it was read")
        return Digests(read.hexdigest(), output.finish(), output.size)


def read_tensor(file: BinaryIO, path: Path, name: str, entry: Entry) -> Tensor:
    """Read one tensor to the CPU.

    Raises:
        OSError: the file cannot be read, or became shorter meanwhile.

    """
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    view = bytes_of(tensor)
    file.seek(entry.start)
    if file.readinto(view) != len(view):  # type: ignore[attr-defined]
        raise OSError(f"{WHO}: {path} ended within {name!r:.200} while it was read")
    return tensor


def _copy(
    file: BinaryIO,
    path: Path,
    entry: Entry,
    output: HashingWriter,
    read: hashlib._Hash,
    advance: Advance,
) -> None:
    for start in range(entry.start, entry.end, CHUNK):
        chunk = _read(file, path, start, min(CHUNK, entry.end - start))
        output.write(chunk, read)
        advance(len(chunk))


def _read(file: BinaryIO, path: Path, start: int, length: int) -> bytes:
    file.seek(start)
    data = file.read(length)
    if len(data) != length:
        raise OSError(f"{WHO}: {path} became shorter while it was read")
    return data


def _header(plans: Sequence[TensorPlan], metadata: Mapping[str, str]) -> bytes:
    """Length and header of the merged shard, padded to whole eights of bytes."""
    content: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for plan in plans:
        content[plan.name] = {
            "dtype": _NAMES[plan.dtype],
            "shape": list(plan.shape),
            "data_offsets": [position, position + plan.size],
        }
        position += plan.size
    blob = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    blob += b" " * (-len(blob) % 8)
    return len(blob).to_bytes(8, "little") + blob
