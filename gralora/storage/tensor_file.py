"""Writes safetensors files, the same bytes every time, and reads those with a checked header.

The safetensors package orders metadata by a random hash, so that equal adapters would give
different files. The layout is its: length of the header, header, tensors by dtype, widest
first, and name (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from typing import BinaryIO

import torch
from torch import Tensor

from gralora.storage.checked_file import DTYPES, Entry, Header

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PLACES = {dtype: place for place, dtype in enumerate(DTYPES.values())}


def write_tensors(
    file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file.

    Args:
        file: open for writing, empty.
        tensors: contiguous, on the CPU, of any dtype in :data:`checked_file.DTYPES`.
        metadata: strings to put into the header.

    Raises:
        TypeError: a dtype that the format or this package lacks.
        OSError: the file cannot be written.

    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise TypeError(
                f"save_adapter: {name} has a dtype that cannot be saved, {tensor.dtype}"
            )
    ordered = sorted(tensors, key=lambda name: (_PLACES[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name in ordered:
        tensor = tensors[name]
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    blob = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    blob += b" " * (-len(blob) % 8)
    file.write(len(blob).to_bytes(8, "little") + blob)
    for name in ordered:
        file.write(bytes_of(tensors[name]))


def read_tensors(file: BinaryIO, header: Header) -> dict[str, Tensor]:
    """Read all tensors of a file whose header was checked, to the CPU.

    Raises:
        OSError: the file cannot be read, or became shorter meanwhile.

    """
    return {name: _read(file, name, entry) for name, entry in header.tensors.items()}


def _read(file: BinaryIO, name: str, entry: Entry) -> Tensor:
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    view = bytes_of(tensor)
    file.seek(entry.start)
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise OSError(f"load_adapter: the file ended within {name!r:.200} while it was read")
        done += count
    return tensor


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor; the caller keeps the tensor alive."""
    size = tensor.numel() * tensor.element_size()
    if not size:
        # Files are read into it, which needs one that may be written.
        return memoryview(bytearray())
    return memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr())).cast("B")
