"""Commands in the sentences and tables of documents: gralora's run, others lead somewhere.

Scripts are run by test_scripts.py, blocks of pages by the tests of the pages, those of README.md
that `.ci/run` marks by it.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from docs_adapters import make_forks, save_ours, save_pefts
from docs_inline import DOCUMENTS, ROOT, Command, all_commands, commands, read, unlabelled
from docs_models import save_tiny_llama
from docs_scripts import brief

from gralora.cli import main

# Who reads a document puts names in the place of words in capitals.
NAMES = {"BASE": "base", "LORA": "lora", "A": "maths", "B": "code", "K": "2", "R": "8"}
GRALORA = [command for command in commands("gralora") if command.inline]


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the commands name."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("commands")
    save_tiny_llama(folder / "base")
    for name in ("adapter", "maths", "code"):
        save_ours(folder / "base", folder / name, r=8, k=2)
    save_pefts(folder / "base", folder / "lora", "LoraConfig", r=8)
    save_pefts(folder / "base", folder / "fork", "GraloraConfig", r=8, gralora_k=2, alpha=8)
    make_forks(folder / "fork")
    return folder


def _words(command: Command) -> list[str]:
    adapter = ["fork"] if command.words[1] == "convert" else ["adapter"]
    names = {**{word: [name] for word, name in NAMES.items()}, "ADAPTER": adapter,
             "ADAPTER...": ["maths", "code"], "OUT": ["out"]}  # fmt: skip
    return [name for word in command.words[1:] for name in names.get(word, [word])]


@pytest.mark.parametrize("command", GRALORA, ids=str)
def test_commands_of_gralora_run(
    command: Command, things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(things, tmp_path / "things")
    monkeypatch.chdir(folder)
    words = _words(command)
    takes_nothing = words[0] == "info"
    if words[0] == "bench":
        words += brief(words[1:])
    elif not takes_nothing and all(word.startswith("-") for word in words[1:]):
        # A name without what it works on: the command, and the options that are named with it.
        _check_help(words)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output


def _check_help(words: list[str]) -> None:
    names = [word for word in words if not word.startswith("-")]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = CliRunner().invoke(main, [*names, "--help"])
    assert result.exit_code == 0, result.output
    assert set(words) - set(names) <= set(re.findall(r"--[\w-]+", result.output))


SNIPPETS = [command for command in commands("python") if command.words[1] == "-c"]


@pytest.mark.parametrize("command", SNIPPETS, ids=str)
def test_snippets_run_and_print(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(command.words[2], str(command), "exec"), {})
    assert capsys.readouterr().out.strip()


WITHOUT_AN_INDEX = ("--dry-run", "--no-deps", "--no-index", "--no-build-isolation")
INSTALLS = [*commands("pip"), *(c for c in commands("uv") if c.words[1] == "pip")]


def _of_pip(words: list[str]) -> list[str]:
    """The words after pip that concern the project; pip takes all of uv's but one option."""
    words = words[words.index("pip") + 1 :]
    if "--reinstall-package" in words:
        at = words.index("--reinstall-package")
        del words[at : at + 2]
    return [word for word in words if word.startswith(("-", ".", "gralora.")) or word == "install"]


@pytest.mark.parametrize("command", INSTALLS, ids=str)
def test_extras_and_settings_of_installations_are_there(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "cmake")
    from gralora_build.settings import split

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"\.\[([\w,]+)\]", command.text):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    settings = re.findall(r"-C (gralora\.\w+)=(\w+)", command.text)
    assert split(dict(settings))[1] == {}
    assert ("-C " in command.text) == bool(settings)


def _of_the_project() -> dict[tuple[str, ...], set[str]]:
    """Installations of the project without their extras, and all extras that documents ask for.

    What else they name, an index has.
    """
    found: dict[tuple[str, ...], set[str]] = {}
    for command in INSTALLS:
        words = _of_pip(command.words)
        extras = re.findall(r"^\.\[([\w,]+)\]", "\n".join(words), re.MULTILINE)
        words = [re.sub(r"^\.\[.*", ".", word) for word in words if word not in WITHOUT_AN_INDEX]
        if "." in words:
            found.setdefault(tuple(words), set()).update(*(names.split(",") for names in extras))
    return found


OF_THE_PROJECT = _of_the_project()


def _is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


@pytest.mark.parametrize("words", OF_THE_PROJECT, ids=" ".join)
def test_pip_takes_what_installs_the_project(words: tuple[str, ...]) -> None:
    """As far as the metadata of a build, which asks for torch and the compiler."""
    # Neither imported nor looked up as a module: after either setuptools, which inductor imports,
    # takes this process for pip's.
    for package in ("pip", "scikit-build-core"):
        if not _is_installed(package):
            pytest.skip(f"{package} is not installed")
    if "gralora.cuda=on" in words and shutil.which("nvcc") is None:
        pytest.skip("no compiler of CUDA, which an isolated build fetches")
    extras = ",".join(sorted(OF_THE_PROJECT[words]))
    meant = {".": f".[{extras}]" if extras else "."}
    meant["gralora.torch=DIR"] = f"gralora.torch={Path(torch.__file__).parents[1]}"
    words = [*(meant.get(word, word) for word in words), *WITHOUT_AN_INDEX]
    ended = subprocess.run(
        [sys.executable, "-m", "pip", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "does not provide the extra" not in ended.stderr
    assert re.search(r"^Would install gralora-\d", ended.stdout, re.MULTILINE)


CONFIGURE = [command for command in commands("cmake") if "-S" in command.words]
BUILD = [command for command in commands("cmake") if "--build" in command.words]


@pytest.mark.parametrize("command", CONFIGURE, ids=str)
def test_cmake_configures_and_would_build(command: Command, tmp_path: Path) -> None:
    for program in ("cmake", "ninja"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    words = command.words
    source, folder = words[words.index("-S") + 1], words[words.index("-B") + 1]
    if not source.endswith("emulator") and shutil.which("nvcc") is None:
        pytest.skip("no compiler of CUDA")
    words[words.index(source)] = str(ROOT / source)
    builds = [build.words for build in BUILD if folder in build.words]
    assert builds
    # What takes minutes is only named.
    for each in (words, *([*build, "--", "-n"] for build in builds)):
        each = [str(tmp_path / "build") if word == folder else word for word in each]
        ended = subprocess.run(each, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    assert re.search(r"^\[\d+/\d+\] Building", ended.stdout, re.MULTILINE)


def _paths() -> Iterator[tuple[Command, str]]:
    """Files and folders of the repository that commands of other programs take."""
    for command in commands("cmake"):
        if "-S" in command.words:
            yield command, f"{command.words[command.words.index('-S') + 1]}/CMakeLists.txt"
    for command in (*commands("bash"), *commands("pytest"), *commands("benchmarks/gpu_check.sh")):
        yield from ((command, word) for word in command.words if "/" in word)


@pytest.mark.parametrize(("command", "path"), list(_paths()), ids=str)
def test_files_that_commands_name_are_there(command: Command, path: str) -> None:
    assert (ROOT / path).exists()


# Tests here and in test_scripts.py take each command of these programs; those of gralora in blocks,
# the pages' tests.
CHECKED = {
    *(
        "python",
        "torchrun",
        "accelerate",
        "pip",
        "uv",
        "cmake",
        "bash",
        "pytest",
        "benchmarks/gpu_check.sh",
    ),
    # What only sets something up, and a server that is not here.
    *(".", "pre-commit", "vllm"),
}
BLOCKS = [command for command in all_commands() if not command.inline]


@pytest.mark.parametrize("command", BLOCKS, ids=str)
def test_commands_of_blocks_are_run_or_checked_by_a_test(command: Command) -> None:
    document = Path(command.document)
    if command.words[0] == "gralora":
        test = ROOT / "tests" / "docs" / f"test_{document.stem}_page.py"
        assert re.search(r"read_in\(|Reading\(", test.read_text(encoding="utf-8"))
    elif command.words[0] not in CHECKED:
        assert command.text in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_of_commands_say_that_they_are(path: Path) -> None:
    assert unlabelled(read(path)) == []


@pytest.mark.parametrize("start", ["gralora info", "$ pip install ."], ids=["bare", "prompt"])
def test_a_block_of_commands_without_a_language_is_noticed(start: str) -> None:
    text = f"Run\n\n```\n{start}\n```\n\nor\n\n```bash\n{start}\n```\n"
    assert unlabelled(text) == [start]


def test_the_notebooks_installation_is_among_the_commands() -> None:
    assert "examples/walkthrough.ipynb" in {command.document for command in INSTALLS}


def test_the_documents_have_commands_of_each_kind() -> None:
    assert len(GRALORA) > 20
    assert min(map(len, (SNIPPETS, INSTALLS, list(_paths())))) > 0
