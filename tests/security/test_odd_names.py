"""Names that look like markup or command a terminal: printed, never obeyed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from security_changes import parts
from security_files import (
    CONFIG,
    INDEX,
    LAYERS,
    SHARDS,
    TENSORS,
    adapter_config,
    write_adapter,
    write_base,
    write_safetensors,
)

from gralora.cli import main

# By what it is: as it stands in a file, and as it is to be printed.
NAMES = {
    "closing tag": ("[/red]", "[/red]"),
    "tag": ("[bold]", "[bold]"),
    "emoji": (":smile:", ":smile:"),
    "colour": ("\x1b[31m", r"\x1b[31m"),
    "title of the window": ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
    "right to left": ("\u202eabc", r"\u202eabc"),
}
PRINTABLE = [case for case, (name, _) in NAMES.items() if name.isprintable()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A good adapter and a good base."""
    write_adapter(tmp_path / "adapter", modules_to_save=None)
    _drop_the_norm(tmp_path / "adapter" / TENSORS)
    write_base(tmp_path / "base")
    return tmp_path


def _drop_the_norm(path: Path) -> None:
    header, data = parts(path)
    kept = {key: entry for key, entry in header.items() if "norm" not in key}
    end = max(entry["data_offsets"][1] for entry in kept.values())
    write_safetensors(path, kept, data[:end])


def _run(root: Path, patch: pytest.MonkeyPatch, *command: str) -> Any:
    """The result of a command; both of its outputs hold nothing that a terminal obeys."""
    patch.chdir(root)
    patch.setenv("COLUMNS", "500")
    result = CliRunner().invoke(main, command)
    assert not isinstance(result.exception, Exception), result.exception
    assert not {char for char in result.output if not char.isprintable()} - {"\n"}
    return result


def _prefix_the_base(root: Path, prefix: str) -> None:
    for name in SHARDS:
        header, data = parts(root / "base" / name)
        header = {prefix + key: entry for key, entry in header.items()}
        write_safetensors(root / "base" / name, header, data)
    path = root / "base" / INDEX
    index = json.loads(path.read_text())
    index["weight_map"] = {prefix + key: home for key, home in index["weight_map"].items()}
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("case", NAMES)
def test_a_prefix_of_the_base_is_printed(
    case: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, printed = NAMES[case]
    _prefix_the_base(root, f"{name}.")
    result = _run(root, monkeypatch, "merge", "base", "adapter", "out")
    assert result.exit_code == 0
    assert f"no prefix is {printed}. in the base" in result.stderr


@pytest.mark.parametrize("case", NAMES)
def test_names_of_the_base_are_printed_in_a_refusal(
    case: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, printed = NAMES[case]
    # Numbers of layers keep a prefix from being taken for one.
    _prefix_the_base(root, f"{name}.1.")
    result = _run(root, monkeypatch, "merge", "base", "adapter", "out")
    assert result.exit_code == 1
    assert f"{printed}.1.layers.0.up.weight" in result.stderr


@pytest.mark.parametrize(("suffix", "words"), [("txt", "copied"), ("foo", "left out")])
@pytest.mark.parametrize("case", [case for case in NAMES if case != "closing tag"])
def test_files_beside_the_weights_are_printed(
    case: str, suffix: str, words: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, printed = NAMES[case]
    (root / "base" / f"{name}.{suffix}").write_text("")
    result = _run(root, monkeypatch, "merge", "base", "adapter", "out")
    assert result.exit_code == 0
    (line,) = (line for line in result.stderr.splitlines() if words in line)
    assert f"{printed}.{suffix}" in line


def _rename_the_modules(root: Path, name: str) -> None:
    path = root / "adapter" / TENSORS
    header, data = parts(path)
    header = {key.replace("layers.0", name): entry for key, entry in header.items()}
    write_safetensors(path, header, data)


@pytest.mark.parametrize("command", ["inspect", "combine"])
@pytest.mark.parametrize("case", PRINTABLE)
def test_modules_are_printed(
    case: str, command: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, printed = NAMES[case]
    # What is written may have no slash in its names of modules.
    name, printed = (
        name.replace("/", "\N{FRACTION SLASH}"),
        printed.replace("/", "\N{FRACTION SLASH}"),
    )
    _rename_the_modules(root, name)
    more = ["adapter", "out"] if command == "combine" else []
    result = _run(root, monkeypatch, command, "adapter", *more)
    assert result.exit_code == 0
    assert f"{printed}.up" in result.output


def test_a_module_that_looks_like_a_closing_tag_is_inspected(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _rename_the_modules(root, "[/red]")
    (root / "adapter" / CONFIG).write_text(
        json.dumps(adapter_config(target_modules="x", modules_to_save=None))
    )
    result = _run(root, monkeypatch, "inspect", "adapter")
    assert result.exit_code == 0
    assert "[/red].up" in result.stdout


@pytest.mark.parametrize("case", [*NAMES, "half a character"])
def test_the_name_of_the_base_model_is_printed(
    case: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, printed = NAMES.get(case, ("\ud800", r"\ud800"))
    (root / "adapter" / CONFIG).write_text(
        json.dumps(adapter_config(base_model_name_or_path=name, modules_to_save=None))
    )
    result = _run(root, monkeypatch, "inspect", "adapter")
    assert result.exit_code == 0
    assert f"adapter on {printed}: {len(LAYERS)} layers" in result.stdout


@pytest.mark.parametrize("command", ["inspect", "export-lora", "combine"])
@pytest.mark.parametrize("case", [case for case in NAMES if case != "closing tag"])
def test_folders_are_printed(
    case: str, command: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, printed = NAMES[case]
    (root / "adapter").rename(root / name)
    arguments = [name] if command == "inspect" else [name, f"{name}-out"]
    result = _run(root, monkeypatch, command, *arguments)
    assert result.exit_code == 0
    assert printed in result.stdout


def test_a_picture_takes_names_as_they_are(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    # Between dollars, matplotlib would read mathematics.
    _rename_the_modules(root, r"$\x.0.$\y")
    content = adapter_config(base_model_name_or_path="$\\frac$ \x1b", modules_to_save=None)
    (root / "adapter" / CONFIG).write_text(json.dumps(content))
    result = _run(root, monkeypatch, "inspect", "adapter", "--plot", "blocks.png")
    assert result.exit_code == 0
    assert (root / "blocks.png").stat().st_size > 0
