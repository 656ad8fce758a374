"""Importing the package: from anywhere, without a GPU, and with readable errors when it cannot."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gralora

SOURCE = Path(__file__).parents[2] / "gralora"
OTHER_TORCH = "1.99.0+cpu"


@pytest.fixture(scope="module")
def copy_installed(tmp_path_factory) -> Callable[[], Path]:
    """``copy_installed()``: a copy of the installed package that may be damaged.

    The folder that holds it goes on the path.
    """
    specs = [importlib.util.find_spec(f"gralora{part}") for part in ("", "._build_info", "._C")]
    package, *parts = [Path(spec.origin) for spec in specs]

    def copy() -> Path:
        target = tmp_path_factory.mktemp("copy") / "gralora"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package.parent, target, ignore=ignored)
        for part in parts:
            if not (target / part.name).exists():
                shutil.copy(part, target)
        return target

    return copy


def last_line(result):
    """The error that a process ended with."""
    assert result.returncode != 0
    return result.stderr.strip().splitlines()[-1]


FACTS = """
import gralora, gralora.nn, gralora.functional
import json, pathlib, sys, torch
facts = {
    "version": gralora.__version__,
    "modules": sorted(sys.modules),
    "cuda": torch.cuda.is_initialized(),
}
pathlib.Path(sys.argv[1]).write_text(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def imported(python, tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """A process that imported the package from another folder, and what it found in itself."""
    path = tmp_path_factory.mktemp("facts") / "facts.json"
    result = python("-W", "error::UserWarning", "-c", FACTS, str(path))
    assert result.returncode == 0, result.stderr
    return result, json.loads(path.read_text())


def test_import_from_another_directory(imported):
    assert imported[1]["version"] == importlib.metadata.version("gralora")


def test_import_says_nothing(imported):
    result, _ = imported
    assert result.stdout == ""
    assert "gralora" not in result.stderr


def test_import_does_not_start_cuda(imported):
    assert imported[1]["cuda"] is False


@pytest.mark.parametrize("package", ["peft", "transformers", "click", "rich", "triton"])
def test_import_loads_no_optional_package(imported, package):
    assert package not in imported[1]["modules"]


def test_import_leaves_the_benchmarks_alone(imported):
    assert not [name for name in imported[1]["modules"] if name.startswith("gralora.bench")]


@pytest.mark.parametrize("package", ["gralora.adapters", "gralora.checkpoints", "gralora.cli"])
def test_import_leaves_work_on_files_alone(imported, package):
    assert package not in imported[1]["modules"]


@pytest.mark.parametrize("name", gralora.__all__)
def test_every_public_name_is_there_and_listed(name):
    assert getattr(gralora, name) is not None
    assert name in dir(gralora)


def test_late_names_are_the_functions_of_their_modules():
    from gralora.adapters.export_lora import export_lora
    from gralora.checkpoints.merge import merge_checkpoint

    assert gralora.export_lora is export_lora
    assert gralora.merge_checkpoint is merge_checkpoint


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'gralora' has no attribute 'exprot_lora'"):
        _ = gralora.exprot_lora


COMMAND = """
import sys
sys.argv = ["/usr/bin/gralora", "--help"]
import gralora
assert "torch" not in sys.modules
from gralora import functional, inject
import gralora.nn, torch
assert gralora.functional is functional and gralora.inject is inject
torch.ops.gralora.linear
"""


def test_process_of_the_command_has_everything_when_it_asks(python):
    result = python("-c", COMMAND)
    assert result.returncode == 0, result.stderr


def test_import_without_a_visible_gpu(python):
    code = "import torch, gralora.nn as nn; nn.GraLoRALinear(4, 4, r=2)(torch.ones(4))"
    result = python("-c", code, env={"CUDA_VISIBLE_DEVICES": ""})
    assert result.returncode == 0, result.stderr


def test_copy_of_the_installed_package_imports(python, copy_installed):
    installed = copy_installed()
    result = python("-c", "import gralora; print(gralora.__file__)", path=installed.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(installed / "__init__.py")


@pytest.fixture(scope="module")
def mismatch(python, copy_installed) -> str:
    """The error of a package that was built for another torch."""
    build_info = copy_installed() / "_build_info.py"
    text = build_info.read_text()
    changed = re.sub(r'(TORCH_VERSION\b.*=\s*)"[^"]*"', rf'\1"{OTHER_TORCH}"', text)
    assert changed != text
    build_info.write_text(changed)
    return last_line(python("-c", "import gralora", path=build_info.parents[1]))


def test_torch_mismatch_is_an_import_error(mismatch):
    assert mismatch.startswith("ImportError: ")


def test_torch_mismatch_is_one_line_of_a_command(python, copy_installed):
    build_info = copy_installed() / "_build_info.py"
    text = build_info.read_text()
    build_info.write_text(re.sub(r'(TORCH_VERSION\b.*=\s*)"[^"]*"', rf'\1"{OTHER_TORCH}"', text))
    result = python("-m", "gralora", "info", path=build_info.parents[1])
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"gralora info: gralora was built for torch 1.99 ({OTHER_TORCH})")


def test_torch_mismatch_names_both_versions(mismatch):
    assert OTHER_TORCH in mismatch
    assert torch.__version__ in mismatch


def test_torch_mismatch_says_what_to_run(mismatch):
    assert "pip install" in mismatch


@pytest.fixture(scope="module")
def bare_sources(python, tmp_path_factory) -> subprocess.CompletedProcess[str]:
    """The outcome of importing the sources, as a script started from their root does."""
    folder = tmp_path_factory.mktemp("sources")
    ignore = shutil.ignore_patterns("__pycache__", "_C*.so", "_build_info.py")
    shutil.copytree(SOURCE, folder / "gralora", ignore=ignore)
    return python("-c", "import gralora", path=folder)


def test_bare_sources_are_an_import_error(bare_sources):
    assert last_line(bare_sources).startswith("ImportError: ")


def test_bare_sources_say_what_to_run(bare_sources):
    assert "pip install" in last_line(bare_sources)


def test_bare_sources_show_no_chain_of_causes(bare_sources):
    assert "During handling" not in bare_sources.stderr
    assert "direct cause" not in bare_sources.stderr


def test_missing_extension_says_what_to_run(python, copy_installed):
    installed = copy_installed()
    for extension in installed.glob("_C*.so"):
        extension.unlink()
    line = last_line(python("-c", "import gralora", path=installed.parent))
    assert line.startswith("ImportError: ")
    assert "pip install" in line


def test_broken_extension_is_named(python, copy_installed):
    installed = copy_installed()
    for extension in installed.glob("_C*.so"):
        extension.write_bytes(b"not a shared library")
    line = last_line(python("-c", "import gralora", path=installed.parent))
    assert line.startswith("ImportError: ")
    assert "_C" in line
