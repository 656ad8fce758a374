"""What is built for a torch and the compilers at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gralora_build import metadata, plan
from gralora_build.errors import BuildError
from gralora_build.settings import Settings
from gralora_build.toolkit import Search, Toolkit
from gralora_build.torch_install import TorchInstall

CPU = TorchInstall(Path("/t/torch"), "2.13.0+cpu", "", True)
CUDA_12 = TorchInstall(Path("/t/torch"), "2.12.0+cu128", "12.8", True)
CUDA_13 = TorchInstall(Path("/t/torch"), "2.14.1+cu130", "13.0", True)
TOOLKIT = Toolkit(Path("/c"), "13.0.88", Path("/c/include"), Path("/c/lib/libcudart_static.a"))
TORCH = "torch>=2.11"
NVCC = "cuda-toolkit[cccl,nvcc]"


@pytest.fixture
def machine(monkeypatch):
    """``machine(torch, toolkit)``: what the searches find."""

    def has(torch, toolkit=None, rejected=()):
        monkeypatch.setattr(plan, "find_torch", lambda folder: torch)
        monkeypatch.setattr(plan, "find_toolkit", lambda *_, **__: Search(toolkit, rejected))
        monkeypatch.setattr(plan, "_decided", None)

    return has


def test_cuda_torch_and_its_compiler_make_a_cuda_build(machine):
    machine(CUDA_13, TOOLKIT)
    decided = plan.decide(Settings())
    assert decided.toolkit == TOOLKIT
    assert decided.reason == ""


def test_a_cpu_torch_makes_a_cpu_build(machine):
    machine(CPU, TOOLKIT)
    decided = plan.decide(Settings())
    assert decided.toolkit is None
    assert decided.reason == "torch 2.13.0+cpu is not a CUDA build"


def test_without_a_compiler_the_reason_says_what_to_install(machine):
    machine(CUDA_13, rejected=("/usr/bin/nvcc is CUDA 12.8.93",))
    reason = plan.decide(Settings()).reason
    assert reason.startswith("no nvcc of CUDA 13, the version of torch 2.14.1+cu130")
    assert "/usr/bin/nvcc is CUDA 12.8.93" in reason
    assert "pip install 'cuda-toolkit[cccl,nvcc]==13.0.*'" in reason


def test_the_reason_names_no_wheels_for_cuda_12(machine):
    machine(CUDA_12)
    reason = plan.decide(Settings()).reason
    assert "no nvcc of CUDA 12" in reason
    assert "pip install" not in reason


def test_cuda_can_be_switched_off(machine):
    machine(CUDA_13, TOOLKIT)
    decided = plan.decide(Settings(cuda="off"))
    assert decided.toolkit is None
    assert decided.reason == "switched off by gralora.cuda=off"


@pytest.mark.parametrize("torch", [CPU, CUDA_12, CUDA_13], ids=["cpu", "cuda12", "cuda13"])
def test_insisting_on_cuda_makes_a_cpu_build_an_error(machine, torch):
    machine(torch)
    with pytest.raises(BuildError, match=r"gralora\.cuda=on, but (torch 2\.13\.0|no nvcc)"):
        plan.decide(Settings(cuda="on"))


def test_no_torch_is_an_error_that_says_what_to_run(machine):
    machine(None)
    with pytest.raises(BuildError, match=r"pip install torch first.*-C gralora\.torch=DIR"):
        plan.decide(Settings())


@pytest.mark.parametrize(
    ("torch", "toolkit", "settings", "missing"),
    [
        pytest.param(None, TOOLKIT, Settings(), [TORCH], id="nvcc-but-no-torch"),
        pytest.param(None, None, Settings(), [TORCH, NVCC], id="neither"),
        pytest.param(None, None, Settings(cuda="off"), [TORCH], id="neither-and-cuda-off"),
        pytest.param(CUDA_13, None, Settings(), [NVCC + "==13.0.*"], id="torch-but-no-nvcc"),
        pytest.param(CUDA_13, TOOLKIT, Settings(), [], id="torch-and-nvcc"),
        pytest.param(CUDA_13, None, Settings(cuda="off"), [], id="cuda-off"),
        pytest.param(CUDA_12, None, Settings(), [], id="cuda12-has-no-wheels"),
        pytest.param(CPU, None, Settings(), [], id="cpu-torch"),
    ],
)
def test_the_build_environment_gets_what_the_target_lacks(
    machine, torch, toolkit, settings, missing
):
    machine(torch, toolkit)
    assert plan.missing_requirements(settings) == missing


def test_cmake_gets_paths_and_versions(machine):
    machine(CUDA_13, TOOLKIT)
    assert json.loads(plan.decide(Settings()).to_json()) == {
        "torch_root": "/t/torch",
        "torch_version": "2.14.1+cu130",
        "torch_cxx11_abi": 1,
        "cuda_version": "13.0.88",
        "cuda_root": "/c",
        "cuda_include": "/c/include",
        "cudart_static": "/c/lib/libcudart_static.a",
        "reason": "",
    }


def test_a_wheel_requires_the_minor_version_it_was_compiled_for(machine):
    machine(CUDA_13, TOOLKIT)
    plan.decide(Settings())
    metadata.build_state("metadata_wheel")
    fields = metadata.dynamic_metadata({"dependencies": ["rich"]}, {})
    assert fields == {"dependencies": ["rich", "torch==2.14.*"]}


def test_a_source_archive_needs_no_torch_to_say_what_it_requires(machine):
    machine(None)
    metadata.build_state("sdist")
    fields = metadata.dynamic_metadata({"dependencies": ["rich"]}, {})
    assert fields == {"dependencies": ["rich", "torch>=2.11"]}
