"""cmake/CudaArch.cmake: lists of architectures, run as a script by CMake."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MODULE = Path(__file__).parents[2] / "cmake" / "CudaArch.cmake"
VARIABLES = ("TORCH_CUDA_ARCH_LIST", "CUDAARCHS")

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake on PATH")


@pytest.fixture
def choose(tmp_path):
    """``choose(cmake=None, **environment)``: portable, sm_90a and named architectures."""

    def run(cmake=None, **environment):
        script = tmp_path / "choose.cmake"
        script.write_text(
            f'include("{MODULE.as_posix()}")\n'
            'message("portable=${GRALORA_CUDA_ARCHITECTURES}")\n'
            'message("sm90=${GRALORA_CUDA_ARCHITECTURES_SM90}")\n'
            'message("names=${GRALORA_CUDA_ARCHITECTURE_NAMES}")\n'
        )
        defines = [f"-DCMAKE_CUDA_ARCHITECTURES={cmake}"] if cmake is not None else []
        inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        return subprocess.run(
            ["cmake", *defines, "-P", str(script)],
            env={**inherited, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    return run


def values(result):
    assert result.returncode == 0, result.stdout
    lines = (line.partition("=") for line in result.stdout.splitlines() if "=" in line)
    return {name: value for name, _, value in lines}


def test_by_default_ampere_hopper_and_ptx_for_newer_chips(choose):
    assert values(choose()) == {"portable": "80;90a-real", "sm90": "90a-real", "names": "80;90a"}


@pytest.mark.parametrize(
    ("requested", "portable", "sm90"),
    [
        pytest.param("8.0", "80-real", "", id="one"),
        pytest.param("8.6 8.9", "86-real;89-real", "", id="spaces"),
        pytest.param("8.0;9.0a", "80-real;90a-real", "90a-real", id="semicolons"),
        pytest.param("8.0,9.0", "80-real;90-real", "90a-real", id="commas"),
        pytest.param("8.6+PTX", "86-real;86-virtual", "", id="ptx"),
        pytest.param("9.0a+PTX", "90a-real;90-virtual", "90a-real", id="ptx-of-9.0a-is-of-9.0"),
        pytest.param("12.0", "120-real", "", id="two-digit-major"),
        pytest.param("10.0f", "100f-real", "", id="family"),
        pytest.param("8.0 8.0", "80-real", "", id="repeated"),
        pytest.param("Ampere", "80-real;86-real;86-virtual", "", id="by-name"),
        pytest.param("7.5 8.0", "80-real", "", id="too-old-is-dropped"),
    ],
)
def test_torch_cuda_arch_list(choose, requested, portable, sm90):
    chosen = values(choose(TORCH_CUDA_ARCH_LIST=requested))
    assert (chosen["portable"], chosen["sm90"]) == (portable, sm90)


@pytest.mark.parametrize(
    ("requested", "portable", "sm90"),
    [
        pytest.param("80", "80", "", id="code-and-ptx"),
        pytest.param("80-real;90a-real", "80-real;90a-real", "90a-real", id="code-alone"),
        pytest.param("80;90-virtual", "80;90-virtual", "", id="ptx-alone-is-no-code-for-9.0"),
        pytest.param("all-major", "all-major", "90a-real", id="all-major"),
    ],
)
def test_cmake_cuda_architectures(choose, requested, portable, sm90):
    chosen = values(choose(cmake=requested))
    assert (chosen["portable"], chosen["sm90"]) == (portable, sm90)


def test_names_are_of_machine_code_without_repetition(choose):
    assert values(choose(cmake="80-real;90a-real;90-virtual;80"))["names"] == "80;90a"


def test_cmake_cuda_architectures_wins_over_the_environment(choose):
    chosen = values(choose(cmake="86", TORCH_CUDA_ARCH_LIST="8.0", CUDAARCHS="90"))
    assert chosen["portable"] == "86"


def test_torch_cuda_arch_list_wins_over_cudaarchs(choose):
    assert values(choose(TORCH_CUDA_ARCH_LIST="8.6", CUDAARCHS="90"))["portable"] == "86-real"


def test_cudaarchs_wins_over_the_default(choose):
    assert values(choose(CUDAARCHS="89-real"))["portable"] == "89-real"


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        pytest.param(
            {"TORCH_CUDA_ARCH_LIST": "8.0 sm_90"}, "got 'sm_90' in '8.0 sm_90'", id="torch-list"
        ),
        pytest.param({"TORCH_CUDA_ARCH_LIST": "Hoper"}, "Ampere, Ada or Hopper", id="name"),
        pytest.param({"CUDAARCHS": "8.0"}, "got '8.0' in '8.0'", id="cmake-list"),
        pytest.param({"CUDAARCHS": "70;75"}, "80 or newer", id="nothing-left"),
    ],
)
def test_a_wrong_list_is_an_error_that_says_what_is_accepted(choose, environment, complaint):
    result = choose(**environment)
    assert result.returncode != 0
    assert complaint in " ".join(result.stdout.split())
