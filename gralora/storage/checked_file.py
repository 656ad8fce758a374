"""Reads JSON objects and safetensors headers from files that nobody vouches for.

Everything is checked against the file's own size before anything of that size is allocated. What
comes out is plain Python: a dict, or a :class:`Header` whose tensors lie inside the file, without
gaps and overlaps. :mod:`gralora.storage.tensor_file` reads the numbers afterwards.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch

# safetensors' own limit. Parsed JSON takes up to 34 times its length (CPython 3.11), 3.4 GB here,
# which a workstation still has.
MAX_HEADER_BYTES = 100_000_000
# Ten thousands of full module names, as mixtures of experts have them, stay far below.
MAX_JSON_BYTES = 16 * 2**20
_MAX_DIMENSIONS = 16
# Of the sizes other than 0: torch computes strides and bytes of empty tensors, too, in any dtype.
_MAX_PRODUCT = 2**60
# Deeper values would exhaust the stack of whoever prints them.
_MAX_NESTING = 8

# In the order in which the safetensors package lays out tensors, widest first.
DTYPES: Mapping[str, torch.dtype] = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# In models besides, most of them quantised ones: bytes to be copied. What packs several numbers
# into a byte (F4, F6) is left out, since shape and dtype do not tell its bytes.
MODEL_DTYPES: Mapping[str, torch.dtype] = {
    **DTYPES,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        dtype: of the stored numbers.
        shape: sizes.
        start: first byte in the file.
        end: one past the last byte in the file.

    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """Checked header of a safetensors file: its tensors in file order, and its metadata."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading that is no pipe, device or folder.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is no regular file.

    """
    # A pipe would otherwise block until somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} must be a regular file")
    return os.fdopen(descriptor, "rb")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: too large, no UTF-8, no JSON object, a key given twice, NaN or Infinity.

    """
    with open_regular(path) as file:
        blob = file.read(MAX_JSON_BYTES + 1)
    if len(blob) > MAX_JSON_BYTES:
        raise ValueError(f"{path} must hold at most {MAX_JSON_BYTES} bytes")
    return _parse_object(blob, str(path))


def read_header(
    file: BinaryIO, path: Path, *, dtypes: Mapping[str, torch.dtype] = DTYPES
) -> Header:
    """Read and check the header of a safetensors file; the tensors themselves stay unread.

    Args:
        file: open for reading, at any position.
        path: named in errors.
        dtypes: that tensors may have, by their names in the format.

    Raises:
        ValueError: the file is truncated, or its header is not what the format asks for.

    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    prefix = file.read(8)
    if len(prefix) < 8:
        _refuse(path, f"is truncated: a safetensors file has at least 8 bytes, got {size}")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        _refuse(path, f"must have a header of at most {MAX_HEADER_BYTES} bytes, got {length}")
    if length > size - 8:
        _refuse(path, f"is truncated: its header has {length} bytes, but only {size - 8} follow")
    content = _parse_object(file.read(length), f"the header of {path}")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        _refuse(path, "must have metadata of strings alone")
    for text in (*content, *metadata, *metadata.values()):
        _check_text(path, text)
    start = 8 + length
    tensors = {
        name: _check_entry(path, name, entry, start, dtypes) for name, entry in content.items()
    }
    return Header(_check_coverage(path, tensors, start, size), metadata)


def _parse_object(blob: bytes, what: str) -> dict[str, Any]:
    try:
        content = json.loads(
            blob.decode("utf-8"),
            object_pairs_hook=_refuse_duplicates,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        _refuse_nesting(what)
    except ValueError as error:
        raise ValueError(f"{what} must be a JSON object in UTF-8: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{what} must be a JSON object, got a {type(content).__name__}")
    _check_nesting(content, what)
    return content


def _check_nesting(content: dict[str, Any], what: str) -> None:
    level: list[Any] = [content]
    for _ in range(_MAX_NESTING + 1):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [part for part in value.values() if isinstance(part, (dict, list))]
            else:
                inner += [part for part in value if isinstance(part, (dict, list))]
        if not inner:
            return
        level = inner
    _refuse_nesting(what)


def _refuse_nesting(what: str) -> NoReturn:
    raise ValueError(f"{what} must not nest values deeper than {_MAX_NESTING}")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.200} is given twice")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_text(path: Path, text: str) -> None:
    """Refuse what JSON can say with escapes and a file in UTF-8 cannot: half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse(path, f"must have names and metadata of whole characters, got {text!r:.200}")


def _check_entry(
    path: Path, name: str, entry: object, start: int, dtypes: Mapping[str, torch.dtype]
) -> Entry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(
            path, f"must give dtype, shape and data_offsets of {name!r:.200}, got {entry!r:.200}"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes:
        _refuse(
            path,
            f"has an unsupported dtype for {name!r:.200}, got {dtype!r:.50} "
            f"(supported: {', '.join(dtypes)})",
        )
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        _refuse(path, f"must give {name!r:.200} a shape of sizes, got {shape!r:.200}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        _refuse(path, f"must give {name!r:.200} two data_offsets, got {offsets!r:.200}")
    wanted = math.prod(shape) * dtypes[dtype].itemsize
    if offsets[1] - offsets[0] != wanted:
        _refuse(
            path,
            f"gives {name!r:.200} {offsets[1] - offsets[0]} bytes, but shape {shape} in {dtype} "
            f"takes {wanted}",
        )
    if math.prod(max(size, 1) for size in shape) >= _MAX_PRODUCT:
        _refuse(
            path, f"must give {name!r:.200} sizes of a product below 2^60, 0 aside, got {shape}"
        )
    return Entry(dtypes[dtype], tuple(shape), start + offsets[0], start + offsets[1])


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**63 for value in values
    )


def _check_coverage(
    path: Path, tensors: dict[str, Entry], start: int, size: int
) -> dict[str, Entry]:
    """The entries in file order, once they are known to cover the file exactly."""
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    position, before = start, "the header"
    for name, entry in ordered.items():
        if entry.start != position:
            how = "overlaps" if entry.start < position else "leaves a gap after"
            _refuse(path, f"is damaged: {name!r:.200} {how} {before!r:.200}")
        position, before = entry.end, name
    if position > size:
        _refuse(path, f"is truncated: its tensors end at byte {position}, but it has {size} bytes")
    if position < size:
        _refuse(path, f"has {size - position} bytes that belong to no tensor")
    return ordered


def _refuse(path: Path, why: str) -> NoReturn:
    raise ValueError(f"{path} {why}")
