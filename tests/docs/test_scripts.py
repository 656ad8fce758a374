"""Commands of documents that start scripts run, with small stand-ins for models, texts, sizes."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_inline import ROOT, Command, commands
from docs_scripts import FRAMEWORKS, Stage


def _script(command: Command) -> int:
    """Which of its words is a script."""
    return next((i for i, word in enumerate(command.words) if word.endswith(".py")), 0)


def _once(found: list[Command]) -> list[Command]:
    """Each text once, whichever documents have it."""
    return list({" ".join(command.words): command for command in found}.values())


PYTHON = commands("python")
STARTS = _once([command for command in PYTHON if _script(command)])
LAUNCHED = [c for c in _once([*commands("torchrun"), *commands("accelerate")]) if _script(c)]
MODULES = [command for command in PYTHON if command.words[1] == "-m"]
TESTS = _once(commands("pytest"))
SHELL = _once([*commands("bash"), *commands("benchmarks/gpu_check.sh")])
CHECKS = _once(commands("benchmarks/gpu_check.sh"))


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


@pytest.mark.parametrize("command", STARTS, ids=str)
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


@pytest.mark.parametrize("command", CHECKS, ids=str)
def test_the_check_of_a_gpu_runs_without_its_steps(command: Command, tmp_path: Path) -> None:
    script, *words = command.words
    words = [str(tmp_path / word) for word in words]
    environment = {**os.environ, "STEPS": "none", "PYTHON": sys.executable}
    ended = subprocess.run(
        [str(ROOT / script), *words], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"^step +status +seconds$", ended.stdout, re.MULTILINE)
    assert (tmp_path / "OUT_DIR" / "check.log").is_file()


def test_every_example_of_frameworks_is_started() -> None:
    started = {Path(command.words[1]).stem for command in STARTS}
    assert {f"finetune_{name}" for name in FRAMEWORKS} <= started


def test_the_documents_have_commands_of_each_kind() -> None:
    assert min(map(len, (STARTS, LAUNCHED, MODULES, TESTS, SHELL, CHECKS))) > 0
    assert {command.words[0] for command in LAUNCHED} == {"accelerate", "torchrun"}
