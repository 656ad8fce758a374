"""``gralora info``: for people, and as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from gralora.cli import main


@pytest.fixture(scope="module")
def script() -> Path:
    """The installed command."""
    path = Path(sysconfig.get_path("scripts")) / "gralora"
    assert path.is_file(), f"the installation left no command at {path}"
    return path


@pytest.fixture(scope="module")
def printed_json(python) -> str:
    """What ``python -m gralora info --json`` prints."""
    result = python("-m", "gralora", "info", "--json")
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def report(printed_json) -> dict:
    """The same, read."""
    return json.loads(printed_json)


@pytest.fixture(scope="module")
def text(python) -> str:
    """What ``python -m gralora info`` prints."""
    result = python("-m", "gralora", "info")
    assert result.returncode == 0, result.stderr
    return result.stdout


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


def test_command_prints_what_the_module_prints(script, text):
    command = subprocess.run([script, "info"], capture_output=True, text=True, check=True)
    assert command.stdout == text


def test_text_names_the_versions(text):
    assert importlib.metadata.version("gralora") in text
    assert torch.__version__ in text


def test_text_says_what_was_built_for_cuda(text, report):
    assert "CUDA" in text
    assert all(name in text for name in report["cuda_architectures"])


def test_output_of_a_pipe_has_no_colours(text):
    assert "\x1b" not in text


def test_json_is_alone_on_standard_output(printed_json):
    assert printed_json.strip().startswith("{")
    assert printed_json.strip().endswith("}")


@pytest.fixture
def invoke():
    """``invoke(*arguments)``: runs the command in this process."""
    runner = CliRunner()
    return lambda *arguments: runner.invoke(main, arguments, prog_name="gralora")


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("-h",), ("info", "--help")],
    ids=["gralora", "gralora-short", "gralora-info"],
)
def test_help_succeeds(invoke, arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: gralora")


def test_version_option(invoke):
    result = invoke("--version")
    assert result.exit_code == 0
    assert importlib.metadata.version("gralora") in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [("unknown",), ("info", "--unknown"), ("info", "surplus")],
    ids=["command", "option", "argument"],
)
def test_misuse_exits_with_2_and_names_it(invoke, arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert arguments[-1] in result.stderr


def test_misuse_prints_no_traceback(python):
    result = python("-m", "gralora", "info", "--unknown")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
