"""CI fails where a test skips for want of a package, so that no example goes unrun unseen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

def test_package():
    pytest.importorskip("no_such_package", reason="it is not installed")

def test_gpu():
    pytest.skip("no GPU is visible")

def test_other():
    pytest.skip("no network")

@pytest.fixture
def package():
    pytest.importorskip("no_such_package")

def test_fixture(package):
    pass

@pytest.mark.xfail
def test_expected():
    assert False
"""
MODULE = "import pytest\n\npytest.importorskip('no_such_package')\n\ndef test_none():\n    pass\n"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What becomes of each test, in a folder of strict tests and in another."""
    folder = tmp_path_factory.mktemp("skips")
    for name in ("docs", "ops"):
        (folder / "tests" / name).mkdir(parents=True)
        (folder / "tests" / name / f"test_{name}.py").write_text(TESTS, encoding="utf-8")
        (folder / "tests" / name / f"test_whole_{name}.py").write_text(MODULE, encoding="utf-8")
    options = ["-p", "fail_skips", "-p", "no:cacheprovider", "-rA", "--rootdir", str(folder)]
    run = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", *options, "--continue-on-collection-errors"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".ci"), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = re.findall(r"^(FAILED|ERROR|XFAIL) (\S+)", run.stdout, re.MULTILINE)
    return {path: outcome for outcome, path in lines}


@pytest.mark.parametrize("folder", ["docs", "ops"])
@pytest.mark.parametrize("test", ["test_package", "test_fixture"])
def test_a_missing_package_fails(outcomes: dict[str, str], folder: str, test: str) -> None:
    assert outcomes[f"tests/{folder}/test_{folder}.py::{test}"] in ("FAILED", "ERROR")


@pytest.mark.parametrize("folder", ["docs", "ops"])
def test_a_module_that_misses_a_package_fails(outcomes: dict[str, str], folder: str) -> None:
    assert outcomes[f"tests/{folder}/test_whole_{folder}.py"] == "ERROR"


def test_only_documents_and_examples_may_not_skip_otherwise(outcomes: dict[str, str]) -> None:
    assert outcomes["tests/docs/test_docs.py::test_other"] == "FAILED"
    assert "tests/ops/test_ops.py::test_other" not in outcomes


@pytest.mark.parametrize("folder", ["docs", "ops"])
def test_a_missing_gpu_skips(outcomes: dict[str, str], folder: str) -> None:
    assert f"tests/{folder}/test_{folder}.py::test_gpu" not in outcomes


@pytest.mark.parametrize("folder", ["docs", "ops"])
def test_an_expected_failure_stays_one(outcomes: dict[str, str], folder: str) -> None:
    assert outcomes[f"tests/{folder}/test_{folder}.py::test_expected"] == "XFAIL"


def test_ci_runs_the_tests_so() -> None:
    assert "-p fail_skips" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
