"""``gralora info``: for people, and as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def script() -> Path:
    """The installed command."""
    path = Path(sysconfig.get_path("scripts")) / "gralora"
    assert path.is_file(), f"the installation left no command at {path}"
    return path


@pytest.fixture
def report(python) -> dict:
    """What ``python -m gralora info --json`` says."""
    result = python("-m", "gralora", "info", "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_json_has_the_documented_keys(report):
    expected = {"version", "torch", "torch_built", "cuda_built", "cuda_architectures", "gpus"}
    assert expected <= report.keys()


def test_json_names_the_installed_version(report):
    assert report["version"] == importlib.metadata.version("gralora")


def test_json_names_the_running_torch(report):
    assert report["torch"] == torch.__version__


def test_json_names_the_torch_of_the_build(report):
    assert report["torch_built"].split("+")[0] == torch.__version__.split("+")[0]


def test_json_lists_the_gpus(report):
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    assert len(report["gpus"]) == count


def test_json_lists_architectures_only_of_a_cuda_build(report):
    assert isinstance(report["cuda_built"], bool)
    assert bool(report["cuda_architectures"]) is report["cuda_built"]
    assert all(isinstance(name, str) for name in report["cuda_architectures"])


def test_text_is_what_the_command_and_the_module_print(python, script):
    command = subprocess.run([script, "info"], capture_output=True, text=True, check=True)
    assert command.stdout == python("-m", "gralora", "info").stdout


def test_text_names_versions(python):
    text = python("-m", "gralora", "info").stdout
    assert importlib.metadata.version("gralora") in text
    assert torch.__version__ in text


def test_text_says_whether_cuda_was_built(python, report):
    text = python("-m", "gralora", "info").stdout
    assert "CUDA" in text
    assert all(name in text for name in report["cuda_architectures"])


def test_output_of_a_pipe_has_no_colours(python):
    assert "\x1b" not in python("-m", "gralora", "info").stdout


def test_json_goes_alone_to_standard_output(python):
    result = python("-m", "gralora", "info", "--json")
    assert result.stdout.strip().startswith("{")
    assert result.stdout.strip().endswith("}")


@pytest.mark.parametrize(
    "arguments", [("--help",), ("info", "--help")], ids=["gralora", "gralora-info"]
)
def test_help_succeeds(python, arguments):
    result = python("-m", "gralora", *arguments)
    assert result.returncode == 0
    assert "Usage" in result.stdout


def test_version_option(python):
    result = python("-m", "gralora", "--version")
    assert result.returncode == 0
    assert importlib.metadata.version("gralora") in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [("unknown",), ("info", "--unknown"), ("info", "surplus")],
    ids=["command", "option", "argument"],
)
def test_misuse_exits_with_2_and_names_it(python, arguments):
    result = python("-m", "gralora", *arguments)
    assert result.returncode == 2
    assert arguments[-1] in result.stderr
    assert "Traceback" not in result.stderr
