"""Commands of documents that start scripts run, with small stand-ins for models and texts.

Those of `NOT_RUN` in docs_scripts.py are parsed alone, by the scripts' own parsers.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import runpy
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docs_inline import ROOT, Command, commands
from docs_scripts import FRAMEWORKS, NOT_RUN, Stage, not_run


def _script(command: Command) -> int:
    """Which of its words is a script."""
    return next((i for i, word in enumerate(command.words) if word.endswith(".py")), 0)


def _once(found: list[Command]) -> list[Command]:
    """Each text once, whichever documents have it."""
    return list({" ".join(command.words): command for command in found}.values())


PYTHON = commands("python")
STARTS = _once([command for command in PYTHON if _script(command)])
RUN = [command for command in STARTS if not_run(command) is None]
PARSED = [command for command in STARTS if not_run(command) is not None]
LAUNCHED = [c for c in _once([*commands("torchrun"), *commands("accelerate")]) if _script(c)]
MODULES = [command for command in PYTHON if command.words[1] == "-m"]
TESTS = _once(commands("pytest"))
SHELL = _once([*commands("bash"), *commands("benchmarks/gpu_check.sh")])


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A tiny model and a text; the settings of torch are afterwards what they were."""
    for package in ("accelerate", "matplotlib", "peft", "transformers"):
        pytest.importorskip(package)
    stage = Stage(tmp_path_factory.mktemp("scripts"))
    from examples_torch_settings import kept_settings

    with kept_settings():
        yield stage


def _check_packages(script: str) -> None:
    from examples_framework_runs import PACKAGES

    for package in PACKAGES.get(Path(script).stem.removeprefix("finetune_"), ()):
        pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.mark.parametrize("command", RUN, ids=str)
def test_scripts_run_as_documents_start_them(
    command: Command, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = _script(command)
    script, words = command.words[at], command.words[at + 1 :]
    _check_packages(script)
    if "--resume" in words:
        before = [word for word in words if word != "--resume"]
        if not (stage.folder / "out" / Path(script).stem).exists():
            stage.run(script, before, monkeypatch)
    elif script.startswith("examples/finetune_"):
        # The same command stands for a run of its own in each document.
        stage.forget(script)
    stage.run(script, words, monkeypatch)


@pytest.mark.parametrize("command", LAUNCHED, ids=str)
def test_launchers_run_as_documents_start_them(command: Command, stage: Stage) -> None:
    stage.launch(command)
    assert (stage.folder / "out" / command.words[0] / "adapter").is_dir()


class _ParsedError(Exception):
    """The options of a script were those that it takes."""


@pytest.mark.parametrize("command", PARSED, ids=str)
def test_scripts_that_are_not_run_take_the_options(
    command: Command, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = _script(command)
    path = ROOT / command.words[at]
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(*arguments: Any) -> None:
        parse(*arguments)
        raise _ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [str(path), *command.words[at + 1 :]])
    monkeypatch.syspath_prepend(path.parent)
    with pytest.raises(_ParsedError):
        runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("reason", NOT_RUN)
def test_each_reason_not_to_run_has_a_command(reason: str) -> None:
    assert reason in map(not_run, PARSED)


@pytest.mark.parametrize("command", MODULES, ids=str)
def test_modules_start(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, *words = command.words[2:]
    if module == "venv":
        # Without pip, whose installation takes seconds.
        venv.main(["--without-pip", *(str(tmp_path / word) for word in words)])
        assert (tmp_path / words[0] / "bin" / "activate").is_file()
    elif module == "pytest":
        assert not words
        assert importlib.util.find_spec("pytest.__main__")
    else:
        monkeypatch.setattr(sys, "argv", [module, *words, "--help"])
        with pytest.raises(SystemExit, match=r"^0$"):
            runpy.run_module(module, run_name="__main__")


@pytest.mark.parametrize("command", TESTS, ids=str)
def test_tests_that_documents_name_are_collected(command: Command, tmp_path: Path) -> None:
    words = [str(ROOT / word) if "/" in word else word for word in command.words[1:]]
    options = ["--collect-only", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    found = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "--rootdir", str(ROOT), *words, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout
    assert re.search(r"[1-9]\d*(/\d+)? tests? collected", found.stdout)


@pytest.mark.parametrize("command", SHELL, ids=str)
def test_shell_scripts_have_no_error_of_syntax(command: Command) -> None:
    script = next(word for word in command.words if "/" in word)
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def test_every_example_of_frameworks_is_started() -> None:
    started = {Path(command.words[1]).stem for command in RUN}
    assert {f"finetune_{name}" for name in FRAMEWORKS} <= started


def test_the_documents_have_commands_of_each_kind() -> None:
    assert min(map(len, (RUN, LAUNCHED, PARSED, MODULES, TESTS, SHELL))) > 0
    assert {command.words[0] for command in LAUNCHED} == {"accelerate", "torchrun"}
