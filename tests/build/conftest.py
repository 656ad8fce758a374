"""The build backend from the source tree, and stand-ins for torch and for CUDA toolkits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "cmake"))


@pytest.fixture
def make_torch() -> Callable[..., Path]:
    """``make_torch(folder, version, cuda=None)``: a package that answers the probe like torch."""

    def make(folder: Path, version: str = "2.14.1", cuda: str | None = None) -> Path:
        package = folder / "torch"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(
            "import types\n"
            f"__version__ = {version!r}\n"
            f"version = types.SimpleNamespace(cuda={cuda!r})\n"
            "def compiled_with_cxx11_abi(): return True\n"
        )
        return folder

    return make


@pytest.fixture(scope="session")
def empty_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter whose environment has no package at all."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin" / "python"


@pytest.fixture
def make_toolkit() -> Callable[..., Path]:
    """``make_toolkit(root, version)``: a folder laid out like a CUDA toolkit; returns its nvcc."""

    def make(root: Path, version: str = "13.0.88", library: str = "lib64") -> Path:
        (root / "bin").mkdir(parents=True)
        (root / "include" / "crt").mkdir(parents=True)
        for header in ("cuda_runtime_api.h", "crt/host_defines.h", "cuda_bf16.h"):
            (root / "include" / header).touch()
        (root / library).mkdir()
        (root / library / "libcudart_static.a").touch()
        nvcc = root / "bin" / "nvcc"
        # Like nvcc, it finds its toolkit by the name it was started by, and says so on stderr.
        nvcc.write_text(
            "#!/bin/sh\n"
            'case "$1" in\n'
            f'--version) echo "Cuda compilation tools, release 13.0, V{version}" ;;\n'
            "esac\n"
            'if [ "$(basename "$(dirname "$0")")" = bin ]; then\n'
            '  echo "#$ TOP=$(dirname "$0")/.." >&2\n'
            "fi\n"
        )
        nvcc.chmod(0o755)
        return nvcc

    return make
