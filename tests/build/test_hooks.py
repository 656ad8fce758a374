"""The hooks that front ends call, in an interpreter without scikit-build-core and without torch."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOOKS = (
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
)


@pytest.fixture
def call(empty_python):
    """``call(code)``: runs it where the backend can be imported and nothing else."""

    def run(code):
        return subprocess.run(
            [empty_python, "-c", f"import gralora_build as backend; {code}"],
            env={"PYTHONPATH": str(ROOT / "cmake"), "PATH": ""},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_every_hook_of_pep_517_and_pep_660_is_there(call):
    result = call(f"print(all(callable(getattr(backend, hook)) for hook in {HOOKS}))")
    assert result.stdout == "True\n", result.stderr


def test_without_scikit_build_core_a_message_and_no_traceback(call):
    result = call("backend.get_requires_for_build_wheel()")
    assert result.returncode == 1
    assert "lacks scikit_build_core" in result.stderr
    assert "pip install 'scikit-build-core>=1.1'" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_torch_a_message_and_no_traceback(call):
    result = call("backend.build_wheel('.')")
    assert result.returncode == 1
    assert result.stderr.startswith("gralora: no torch in this environment")
    assert "Traceback" not in result.stderr
