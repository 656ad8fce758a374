"""The folder that a build keeps its objects in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gralora_build import build_dir
from gralora_build.plan import Plan
from gralora_build.toolkit import Toolkit
from gralora_build.torch_install import TorchInstall

PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
TORCH = TorchInstall(Path("/t/torch"), "2.14.1+cu130", "13.0", True)
TOOLKIT = Toolkit(Path("/c"), "13.0.88", Path("/c/include"), Path("/c/lib/libcudart_static.a"))
CUDA = Plan(TORCH, TOOLKIT, "")
CPU = Plan(TORCH, None, "switched off")


@pytest.fixture
def source(monkeypatch, tmp_path):
    """A checkout in which a hook runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SKBUILD_BUILD_DIR", raising=False)
    return tmp_path


def test_interpreter_torch_and_kind_of_build_name_the_folder(source):
    with build_dir.prepared(CUDA, {}) as settings:
        assert settings["build-dir"] == f"build/{PYTHON}-torch2.14.1_cu130-cuda"


def test_cpu_and_cuda_builds_of_one_torch_are_kept_apart(source):
    assert build_dir.key(CPU) != build_dir.key(CUDA)


def test_kernels_lie_outside_so_that_all_builds_share_them(source):
    with build_dir.prepared(CUDA, {}) as settings:
        assert settings["cmake.define.GRALORA_KERNELS_DIR"] == str(source / "build" / "kernels")


def test_a_folder_named_by_the_user_is_kept(source):
    with build_dir.prepared(CUDA, {"build-dir": "mine"}) as settings:
        assert settings["build-dir"] == "mine"
        assert "cmake.define.GRALORA_KERNELS_DIR" not in settings
    assert not (source / "build").exists()


def test_a_folder_named_in_the_environment_is_kept(source, monkeypatch):
    monkeypatch.setenv("SKBUILD_BUILD_DIR", "mine")
    with build_dir.prepared(CUDA, {}) as settings:
        assert "build-dir" not in settings


def test_the_plan_reaches_cmake(source):
    with build_dir.prepared(CPU, {"build-dir": "mine"}) as settings:
        assert settings["cmake.define.GRALORA_BUILD_PLAN"] == CPU.to_json()


def test_a_second_build_waits_for_the_first(source):
    fcntl = pytest.importorskip("fcntl")
    with (
        build_dir.prepared(CUDA, {}),
        (source / "build" / ".lock").open() as second,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
