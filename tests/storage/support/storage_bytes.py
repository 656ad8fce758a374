"""Builds safetensors files byte by byte, so that they can be wrong in every way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def pack(header: dict[str, Any] | bytes, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file; `length` replaces the true length of the header."""
    blob = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(blob) if length is None else length).to_bytes(8, "little") + blob + data


def entry(dtype: str, shape: list[Any], start: int, end: int) -> dict[str, Any]:
    """One tensor's part of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write(path: Path, content: bytes) -> Path:
    """The path, once it holds the bytes."""
    path.write_bytes(content)
    return path
