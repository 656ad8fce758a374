"""``gralora bench``: the suites that come with the package."""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner, Result

from gralora.cli import main

SMALL = ("--device", "cpu", "--shapes", "16x16", "--tokens", "2", "--rk", "4:2", "--rounds", "9")


def invoke(*arguments: str) -> Result:
    """Run ``gralora bench`` in this process."""
    return CliRunner().invoke(main, ["bench", *arguments], prog_name="gralora")


def test_layer_runs_without_the_repository(python, tmp_path):
    path = tmp_path / "layer.json"
    options = ("--variants", "base,cublas,gralora", "--json", str(path))
    result = python("-m", "gralora", "bench", "layer", *SMALL, *options)
    assert result.returncode == 0, result.stderr
    record = json.loads(path.read_text())
    assert {timing["variant"] for timing in record["timings"]} == {"base", "cublas", "gralora"}


def test_record_names_the_command(tmp_path):
    path = tmp_path / "kernels.json"
    result = invoke("kernels", *SMALL, "--steps", "round", "--json", str(path))
    assert result.exit_code == 0, result.output
    command = json.loads(path.read_text())["environment"]["command"]
    assert command.startswith("gralora bench kernels --device cpu")


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let every import of a package fail, also where it is imported already."""
    parts = {name for name in sys.modules if name.partition(".")[0] == package}
    for name in parts | {package}:
        monkeypatch.setitem(sys.modules, name, None)


def test_variant_without_its_package_is_skipped_with_a_line(monkeypatch):
    hide(monkeypatch, "peft")
    result = invoke("layer", *SMALL, "--variants", "base,peft_lora")
    assert result.exit_code == 0, result.output
    assert "skipped peft_lora: peft cannot be imported: import of peft halted" in result.stdout


def test_plot_without_matplotlib_is_an_error(monkeypatch):
    hide(monkeypatch, "matplotlib")
    result = invoke("layer", *SMALL, "--plot", "x.png")
    assert result.exit_code == 2
    assert "plot: needs matplotlib (pip install matplotlib)" in result.stderr


def test_help_lists_the_suites():
    result = invoke("--help")
    assert result.exit_code == 0
    assert "Usage: gralora bench {layer|kernels|show} [OPTIONS]" in result.stdout
    for suite in ("layer    one", "kernels  each", "show     print"):
        assert f"\n  {suite}" in result.stdout


def test_help_shows_examples():
    assert "  gralora bench show layer.json\n" in invoke("--help").stdout


def test_suite_has_help_of_its_own():
    result = invoke("layer", "--help")
    assert result.exit_code == 0
    assert "usage: gralora bench layer" in result.stdout


def test_a_result_file_that_is_missing_is_one_line(tmp_path):
    result = invoke("show", str(tmp_path / "nope.json"))
    assert result.exit_code == 1
    assert result.stderr == f"gralora bench: no result file {tmp_path / 'nope.json'}\n"


@pytest.mark.parametrize("arguments", [[], ["weather"]], ids=["nothing", "no suite"])
def test_wrong_usage_is_exit_code_2(arguments):
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize("content", ["", "no json", "[]", "{}", '{"suite": "another"}'])
def test_a_file_that_holds_no_results_is_refused(content, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(content)
    result = invoke("show", str(path))
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    assert str(path) in " ".join(result.stderr.split())
