"""The installed package: its metadata, and what its extension module shows to the linker."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import gralora
from gralora import _build_info

SOURCE = Path(__file__).parents[2] / "gralora"


def requirements():
    """Name and specifier of each dependency that no extra asks for."""
    lines = importlib.metadata.requires("gralora")
    plain = [line for line in lines if "extra ==" not in line]
    return dict(re.fullmatch(r"([\w.-]+)\s*\(?([^)]*)\)?", line).groups() for line in plain)


def test_the_minor_version_of_torch_is_required():
    major, minor = _build_info.TORCH_VERSION.split(".")[:2]
    assert requirements()["torch"] == f"=={major}.{minor}.*"


def test_dependencies_beside_torch():
    assert requirements().keys() == {"click", "rich", "safetensors", "torch"}


def test_version_of_metadata_and_build_agree():
    assert importlib.metadata.version("gralora") == _build_info.VERSION


def test_a_build_without_cuda_has_a_reason_and_only_that():
    assert bool(_build_info.REASON) == (not _build_info.CUDA_BUILT)
    assert bool(_build_info.CUDA_ARCHITECTURES) == _build_info.CUDA_BUILT


def test_the_source_folder_holds_no_compiled_module():
    assert not list(SOURCE.rglob("*.so"))
    assert not (SOURCE / "_build_info.py").exists()


def test_the_cuda_runtime_inside_is_not_exported():
    """The module has a runtime of its own; exported, it could take the place of torch's."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", gralora._C.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    exported = [line.split()[-1] for line in listing.splitlines()]
    assert "PyInit__C" in exported
    assert not [name for name in exported if name.startswith("cuda")]
