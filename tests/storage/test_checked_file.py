"""Reading JSON and safetensors headers that nobody vouches for."""

from __future__ import annotations

import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_bytes import entry, pack, write

from gralora.storage.checked_file import (
    MAX_HEADER_BYTES,
    MAX_JSON_BYTES,
    Entry,
    open_regular,
    read_header,
    read_json,
)
from gralora.storage.tensor_file import read_tensors

HOSTILE_JSON = {
    "empty": (b"", "must be a JSON object in UTF-8"),
    "cut off": (b'{"r": 8', "must be a JSON object in UTF-8"),
    "list": (b"[1]", "must be a JSON object, got a list"),
    "text after it": (b'{"r": 8} {}', "must be a JSON object in UTF-8"),
    "latin-1": (b'{"r": "\xe9"}', "must be a JSON object in UTF-8"),
    "NaN": (b'{"alpha": NaN}', "NaN is no JSON number"),
    "Infinity": (b'{"alpha": -Infinity}', "-Infinity is no JSON number"),
    "key twice": (b'{"r": 8, "r": 16}', "the key 'r' is given twice"),
    "key twice below": (b'{"a": {"r": 8, "r": 16}}', "the key 'r' is given twice"),
    "deep": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "must not nest values deeper"),
    "less deep": (b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", "must not nest values deeper"),
    "number of 10,000 digits": (b'{"r": ' + b"1" * 10_000 + b"}", "must be a JSON object in UTF-8"),
    "too large": (b" " * (MAX_JSON_BYTES + 1), f"at most {MAX_JSON_BYTES} bytes"),
}

GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("BF16", [2, 1], 8, 12)}
HOSTILE_HEADERS = {
    "empty file": (b"", "is truncated: a safetensors file has at least 8 bytes, got 0"),
    "only half a length": (b"\1\0\0", "is truncated: a safetensors file has at least 8 bytes"),
    "header cut off": (pack(GOOD, b"", 500), "is truncated: its header has 500 bytes, but only"),
    "header of all memory": (pack(GOOD, b"", 2**63), f"at most {MAX_HEADER_BYTES} bytes, got"),
    "header above the limit": (
        pack(GOOD, b"", MAX_HEADER_BYTES + 1),
        f"at most {MAX_HEADER_BYTES} bytes, got {MAX_HEADER_BYTES + 1}",
    ),
    "no JSON": (pack(b"pickle me", b""), "must be a JSON object in UTF-8"),
    "list": (pack(b"[]", b""), "must be a JSON object, got a list"),
    "tensor twice": (
        pack(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}', b""),
        "the key 'a' is given twice",
    ),
    "metadata of numbers": (
        pack({"__metadata__": {"format": 1}}, b""),
        "must have metadata of strings alone",
    ),
    "metadata no object": (pack({"__metadata__": []}, b""), "must have metadata of strings alone"),
    "entry no object": (pack({"a": 3}, b""), "must give dtype, shape and data_offsets of 'a'"),
    "entry without shape": (
        pack({"a": {"dtype": "F32", "data_offsets": [0, 0]}}, b""),
        "must give dtype, shape and data_offsets of 'a'",
    ),
    "entry with more": (
        pack({"a": {**entry("F32", [0], 0, 0), "x": 1}}, b""),
        "must give dtype, shape and data_offsets of 'a'",
    ),
    "dtype unknown": (pack({"a": entry("F4", [2], 0, 1)}, b"\0"), "unsupported dtype for 'a'"),
    "dtype no string": (
        pack({"a": {"dtype": ["F32"], "shape": [0], "data_offsets": [0, 0]}}, b""),
        "unsupported dtype for 'a'",
    ),
    "negative size": (pack({"a": entry("F32", [-1], 0, 4)}, b"0000"), "'a' a shape of sizes"),
    "size no number": (pack({"a": entry("F32", [True], 0, 4)}, b"0000"), "'a' a shape of sizes"),
    "size a float": (pack({"a": entry("F32", [1.0], 0, 4)}, b"0000"), "'a' a shape of sizes"),
    "size too large": (pack({"a": entry("F32", [2**64], 0, 4)}, b"0000"), "'a' a shape of sizes"),
    "17 dimensions": (pack({"a": entry("F32", [1] * 17, 0, 4)}, b"0000"), "'a' a shape of sizes"),
    "product overflows": (
        pack({"a": entry("F32", [2**62, 4, 2**62], 0, 4)}, b"0000"),
        "gives 'a' 4 bytes, but shape",
    ),
    "offsets backwards": (pack({"a": entry("F32", [1], 4, 0)}, b"0000"), "gives 'a' -4 bytes"),
    "offsets negative": (pack({"a": entry("F32", [1], -4, 0)}, b"0000"), "'a' two data_offsets"),
    "three offsets": (
        pack({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, b"0000"),
        "'a' two data_offsets",
    ),
    "shape larger than bytes": (
        pack({"a": entry("F32", [2], 0, 4)}, b"0000"),
        "gives 'a' 4 bytes, but shape [2] in F32 takes 8",
    ),
    "data cut off": (pack(GOOD, b"0" * 11), "is truncated: its tensors end at byte"),
    "data too long": (pack(GOOD, b"0" * 13), "has 1 bytes that belong to no tensor"),
    "beyond the file": (
        pack({"a": entry("U8", [2**40], 0, 2**40)}, b"0"),
        "is truncated: its tensors end at byte",
    ),
    "overlap": (
        pack({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)}, b"0" * 8),
        "'b' overlaps 'a'",
    ),
    "same bytes": (
        pack({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, b"0" * 4),
        "'b' overlaps 'a'",
    ),
    "gap": (
        pack({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, b"0" * 12),
        "'b' leaves a gap after 'a'",
    ),
    "gap at the start": (
        pack({"a": entry("F32", [1], 4, 8)}, b"0" * 8),
        "'a' leaves a gap after 'the header'",
    ),
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_json_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE_JSON[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the text is compared below)
        read_json(write(tmp_path / "config.json", content))
    assert message in str(caught.value)
    assert "config.json" in str(caught.value)


def test_json_objects_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "config.json", '{"r": 8, "ä": [1.5, null, true]}'.encode())
    assert read_json(path) == {"r": 8, "ä": [1.5, None, True]}


@pytest.mark.parametrize("name", HOSTILE_HEADERS)
def test_a_hostile_header_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE_HEADERS[name]
    path = write(tmp_path / "adapter.safetensors", content)
    with open_regular(path) as file, pytest.raises(ValueError) as caught:  # noqa: PT011
        read_header(file, path)
    assert message in str(caught.value)
    assert "adapter.safetensors" in str(caught.value)


@pytest.mark.parametrize("name", ["header of all memory", "beyond the file", "header cut off"])
def test_a_hostile_header_makes_nothing_large(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "adapter.safetensors", HOSTILE_HEADERS[name][0])
    tracemalloc.start()
    try:
        with open_regular(path) as file, pytest.raises(ValueError, match=r"adapter\.safetensors"):
            read_header(file, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_a_header_of_the_safetensors_package_is_read(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(5, dtype=torch.bfloat16)}
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    with open_regular(path) as file:
        header = read_header(file, path)
    start = path.stat().st_size - 34
    assert header.metadata == {"format": "pt"}
    assert header.tensors == {
        "a": Entry(torch.float32, (2, 3), start, start + 24),
        "b": Entry(torch.bfloat16, (5,), start + 24, start + 34),
    }


def test_empty_tensors_may_share_a_place(tmp_path: Path) -> None:
    header = {"a": entry("F32", [0, 3], 0, 0), "b": entry("F32", [0], 0, 0)}
    path = write(tmp_path / "adapter.safetensors", pack(header, b""))
    with open_regular(path) as file:
        assert set(read_header(file, path).tensors) == {"a", "b"}


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_only_regular_files_are_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises((ValueError, OSError), match=r"config\.json must be a regular file"):
        read_json(path)


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "config.json")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.binary(max_size=4))
def test_what_is_accepted_is_what_the_safetensors_package_accepts(place: int, patch: bytes) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5, dtype=torch.bfloat16)}
    good = safetensors.torch.save(tensors, metadata={"format": "pt"})
    place %= len(good)
    content = good[:place] + patch + good[place + len(patch) :]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "adapter.safetensors", content)
        with open_regular(path) as file:
            try:
                ours = read_tensors(file, read_header(file, path))
            except ValueError:
                return
    theirs = safetensors.torch.load(content)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].shape == tensor.shape
        assert bytes(ours[name].untyped_storage()) == bytes(tensor.contiguous().untyped_storage())
