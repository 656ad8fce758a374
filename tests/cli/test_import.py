"""Importing the package: from anywhere, without a GPU, and with readable errors when it cannot."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).parents[2] / "gralora"
OTHER_TORCH = "1.99.0+cpu"


@pytest.fixture
def installed(tmp_path) -> Path:
    """A copy of the installed package that may be damaged; its folder goes on the path."""
    spec = importlib.util.find_spec("gralora")
    assert spec is not None
    assert spec.origin is not None
    build_info = importlib.util.find_spec("gralora._build_info")
    extension = importlib.util.find_spec("gralora._C")
    copy = tmp_path / "copy" / "gralora"
    shutil.copytree(Path(spec.origin).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for part in (build_info, extension):
        assert part is not None
        assert part.origin is not None
        if not (copy / Path(part.origin).name).exists():
            shutil.copy(part.origin, copy)
    return copy


def last_line(result):
    """The error that a process ended with."""
    assert result.returncode != 0
    return result.stderr.strip().splitlines()[-1]


def test_import_from_another_directory(python):
    result = python("-c", "import gralora; print(gralora.__version__)")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_import_says_nothing(python):
    result = python("-W", "error::UserWarning", "-c", "import gralora, gralora.nn")
    assert result.stdout == ""
    assert "gralora" not in result.stderr
    assert result.returncode == 0


def test_import_without_a_visible_gpu(python):
    code = "import torch, gralora.nn as nn; nn.GraLoRALinear(4, 4, r=2)(torch.ones(4))"
    result = python("-c", code, env={"CUDA_VISIBLE_DEVICES": ""})
    assert result.returncode == 0, result.stderr


def test_import_does_not_start_cuda(python):
    code = "import gralora.nn, torch; assert not torch.cuda.is_initialized()"
    result = python("-c", code)
    assert result.returncode == 0, result.stderr


def test_import_loads_no_optional_package(python):
    code = (
        "import sys, gralora.nn, gralora.functional; "
        "print(sorted({'peft', 'transformers', 'click', 'rich', 'triton'} & set(sys.modules)))"
    )
    result = python("-c", code)
    assert result.stdout.strip() == "[]"


def test_copy_of_the_installed_package_imports(python, installed):
    result = python("-c", "import gralora; print(gralora.__file__)", path=installed.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(installed / "__init__.py")


class TestTorchMismatch:
    """The torch that runs is not the torch of the build."""

    @pytest.fixture
    def line(self, python, installed):
        """The last line of a failed import."""
        build_info = installed / "_build_info.py"
        text = build_info.read_text()
        changed = re.sub(r'(TORCH_VERSION\b.*=\s*)"[^"]*"', rf'\1"{OTHER_TORCH}"', text)
        assert changed != text
        build_info.write_text(changed)
        return last_line(python("-c", "import gralora", path=installed.parent))

    def test_is_an_import_error(self, line):
        assert line.startswith("ImportError: ")

    def test_names_both_versions(self, line):
        assert OTHER_TORCH in line
        assert torch.__version__ in line

    def test_says_what_to_run(self, line):
        assert "pip install" in line


class TestSourceTree:
    """A script started from the root of the sources finds a package without its extension."""

    @pytest.fixture
    def result(self, python, tmp_path):
        """The outcome of importing the bare sources."""
        ignore = shutil.ignore_patterns("__pycache__", "_C*.so", "_build_info.py")
        shutil.copytree(SOURCE, tmp_path / "sources" / "gralora", ignore=ignore)
        return python("-c", "import gralora", path=tmp_path / "sources")

    def test_is_an_import_error(self, result):
        assert last_line(result).startswith("ImportError: ")

    def test_says_what_to_run(self, result):
        assert "pip install" in last_line(result)

    def test_is_one_sentence_without_a_chain_of_causes(self, result):
        assert "During handling" not in result.stderr
        assert "direct cause" not in result.stderr


def test_broken_extension_is_reported_as_itself(python, installed):
    for extension in installed.glob("_C*.so"):
        extension.write_bytes(b"not a shared library")
    line = last_line(python("-c", "import gralora", path=installed.parent))
    assert line.startswith("ImportError: ")
    assert "_C" in line
