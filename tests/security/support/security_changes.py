"""Ways to spoil a safetensors file; each takes its path and a tensor of it that is float32."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from security_files import Header, write_safetensors

Change = Callable[[Path, str], None]


def parts(path: Path) -> tuple[Header, bytes]:
    """Header and data of a valid file."""
    return split(path.read_bytes())


def split(blob: bytes) -> tuple[Header, bytes]:
    """Header and data of what a valid file holds."""
    (length,) = struct.unpack("<Q", blob[:8])
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def _header(change: Callable[[Header, str], Any]) -> Change:
    def apply(path: Path, name: str) -> None:
        header, data = parts(path)
        change(header, name)
        write_safetensors(path, header, data)

    return apply


def _entry(**values: Any) -> Change:
    return _header(lambda header, name: header[name].update(values))


def _text(change: Callable[[str, str], str | bytes], *, claimed: int | None = None) -> Change:
    def apply(path: Path, name: str) -> None:
        header, data = parts(path)
        write_safetensors(path, change(json.dumps(header), name), data, claimed=claimed)

    return apply


def _shift(by: int) -> Change:
    """Move the last tensor's bytes, so that it overlaps its neighbour or leaves a gap."""

    def change(header: Header, name: str) -> None:
        last = header[list(header)[-1]]
        last["data_offsets"] = [offset + by for offset in last["data_offsets"]]

    return _header(change)


def _sparse(path: Path, name: str) -> None:
    """The header is long and there, but holds nothing."""
    with path.open("r+b") as file:
        file.write(struct.pack("<Q", 50_000_000))
        file.truncate(60_000_000)


def _tail(content: bytes) -> Change:
    return lambda path, name: path.write_bytes(path.read_bytes() + content)


def _cut(keep: int) -> Change:
    return lambda path, name: path.write_bytes(path.read_bytes()[:keep])


def fifo(path: Path, name: str = "") -> None:
    """A pipe that nobody writes to."""
    path.unlink()
    os.mkfifo(path)


def folder(path: Path, name: str = "") -> None:
    """A folder of that name."""
    path.unlink()
    path.mkdir()


def _deep(depth: int) -> Change:
    def change(text: str, name: str) -> str:
        return f'{text[:-1]}, "x": {"[" * depth}{"]" * depth}}}'

    return _text(change)


def _twice(text: str, name: str) -> str:
    entry = json.dumps(json.loads(text)[name])
    return f"{text[:-1]}, {json.dumps(name)}: {entry}}}"


def _twice_inside(text: str, name: str) -> str:
    return text.replace('"dtype": "F32"', '"dtype": "F32", "dtype": "F32"', 1)


FILES: dict[str, tuple[Change, str]] = {
    "empty": (_cut(0), "is truncated: a safetensors file has at least 8 bytes"),
    "half a length": (_cut(5), "is truncated: a safetensors file has at least 8 bytes"),
    "cut in the header": (_cut(40), "is truncated: its header has"),
    "cut in the tensors": (_cut(-1), "is truncated: its tensors end at byte"),
    "bytes behind the tensors": (_tail(b"\0" * 8), "has 8 bytes that belong to no tensor"),
    "header of 2^64 - 1 bytes": (_text(lambda text, _: text, claimed=2**64 - 1), "at most 1"),
    "header above the limit": (_text(lambda text, _: text, claimed=100_000_001), "at most 1"),
    "header above the file": (_text(lambda text, _: text, claimed=99_999_999), "is truncated"),
    "header of length 0": (_text(lambda text, _: text, claimed=0), "must be a JSON object"),
    "header of NULs": (_sparse, "must be a JSON object in UTF-8"),
    "header in Latin-1": (_text(lambda t, _: t.encode() + b"\xe9"), "must be a JSON object in"),
    "header is a list": (_text(lambda *_: "[]"), "must be a JSON object, got a list"),
    "header with NaN": (_text(lambda t, _: t.replace("[2,", "[NaN,").replace("[8", "[NaN")), "NaN"),
    "tensor twice": (_text(_twice), "is given twice"),
    "field twice": (_text(_twice_inside), "'dtype' is given twice"),
    "nested ten deep": (_deep(10), "must not nest values deeper than 8"),
    "nested a million deep": (_deep(1_000_000), "must not nest values deeper than 8"),
    "metadata of numbers": (
        _header(lambda header, _: header.update(__metadata__={"x": 1})), "metadata of strings"
    ),
    "metadata a list": (_header(lambda h, _: h.update(__metadata__=[])), "metadata of strings"),
    "entry a string": (_header(lambda h, name: h.update({name: "F32"})), "must give dtype, shape"),
    "entry with more": (_entry(more=1), "must give dtype, shape and data_offsets"),
    "unknown dtype": (_entry(dtype="F128"), "unsupported dtype"),
    "dtype a number": (_entry(dtype=4), "unsupported dtype"),
    "wider dtype": (_entry(dtype="F64"), "but shape"),
    "negative size": (_entry(shape=[-1, 8]), "a shape of sizes"),
    "size a float": (_entry(shape=[8.0, 8]), "a shape of sizes"),
    "size a bool": (_entry(shape=[True, 8]), "a shape of sizes"),
    "size of 2^63": (_entry(shape=[2**63]), "a shape of sizes"),
    "size of 4000 digits": (_entry(shape=[10**4000]), "a shape of sizes"),
    "shape that overflows": (_entry(shape=[2**40, 2**40]), "takes"),
    "shape that overflows to its bytes": (_entry(shape=[2**32, 2**32 + 1]), "takes"),
    "seventeen sizes": (_entry(shape=[1] * 17), "a shape of sizes"),
    "three offsets": (_entry(data_offsets=[0, 1, 2]), "two data_offsets"),
    "negative offset": (_entry(data_offsets=[-128, 0]), "two data_offsets"),
    "offsets turned round": (_entry(data_offsets=[128, 0]), "but shape"),
    "overlap": (_shift(-4), "overlaps"),
    "gap": (_shift(4), "leaves a gap after"),
    "terabytes behind the end": (_entry(shape=[2**40], data_offsets=[0, 2**42]), "is "),
    "a pipe": (fifo, "must be a regular file"),
    "a folder": (folder, "must be a regular file"),
}  # fmt: skip
