"""Writing safetensors files, judged by the safetensors package, and reading them back."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gralora.storage.checked_file import open_regular, read_header
from gralora.storage.tensor_file import read_tensors, write_tensors

TENSORS = {
    "b.weight": torch.arange(6.0).reshape(2, 3),
    "a.weight": torch.arange(5.0).to(torch.bfloat16),
    "c.half": torch.arange(3.0).to(torch.float16),
    "d.double": torch.arange(2.0, dtype=torch.float64),
    "e.steps": torch.tensor(7),
    "f.empty": torch.empty(0, 4),
    "g.flags": torch.tensor([True, False, True]),
}


def _written(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    file = io.BytesIO()
    write_tensors(file, tensors, metadata)
    return file.getvalue()


def test_the_file_is_the_safetensors_packages_byte_for_byte() -> None:
    metadata = {"format": "pt"}
    assert _written(TENSORS, metadata) == safetensors.torch.save(TENSORS, metadata)


def test_the_safetensors_package_reads_every_dtype_back(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(_written(TENSORS, {"format": "pt", "other": "ä\n"}))
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "other": "ä\n"}


def test_files_of_the_safetensors_package_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(TENSORS, path, metadata={"format": "pt"})
    with open_regular(path) as file:
        loaded = read_tensors(file, read_header(file, path))
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)


def test_the_order_of_the_tensors_does_not_show_in_the_file() -> None:
    reverse = dict(reversed(TENSORS.items()))
    assert _written(reverse, {"a": "1", "b": "2"}) == _written(TENSORS, {"a": "1", "b": "2"})


def test_a_dtype_without_a_name_is_refused() -> None:
    with pytest.raises(TypeError, match=r"x has a dtype that cannot be saved, torch\.complex64"):
        _written({"x": torch.zeros(2, dtype=torch.complex64)}, {})


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(_written({"x": torch.zeros(100_000)}, {}))
    with open_regular(path) as file:
        header = read_header(file, path)
        with open(path, "r+b") as writer:
            writer.truncate(1000)
        with pytest.raises(OSError, match="the file ended within 'x' while it was read"):
            read_tensors(file, header)
