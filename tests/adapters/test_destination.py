"""Commands that write an adapter: no file that lies in their output is lost unasked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from adapters_on_disk import edit_config
from loose_layers import random_layer
from safetensors.torch import load_file, save_file

from gralora.adapters import combine, convert, export_lora, import_lora
from gralora.adapters.destination import made
from gralora.adapters.write import write_adapter

Write = Callable[..., Any]


def _convert(source: Path, out: Path, **settings: Any) -> object:
    if source.is_dir():
        edit_config(source, gralora_alpha=4, alpha=None)
    return convert(source, out, **settings)


def _import(source: Path, out: Path, **settings: Any) -> object:
    lora = source.parent / "lora-of-source"
    export_lora(source, lora)
    return import_lora(lora, out, k=2, **settings)


WRITERS: dict[str, Write] = {
    "combine": lambda source, out, **settings: combine([source], out, **settings),
    "convert": _convert,
    "export_lora": export_lora,
    "import_lora": _import,
}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    """One of the functions, with an adapter to read, whose digest of the config is absent."""
    source = tmp_path / "source"
    write_adapter(source, {"x": random_layer(r=8, alpha=8)})
    _drop_digest(source)
    return partial(WRITERS[request.param], source)


def _drop_digest(directory: Path) -> None:
    """Make the tensors those of PEFT, which go with any config."""
    path = directory / "adapter_model.safetensors"
    save_file(load_file(path), path)


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def _adapter(directory: Path, *more: str) -> Path:
    write_adapter(directory, {"y": random_layer(seed=1)})
    for name in more:
        (directory / name).write_text("mine")
    return directory


def test_empty_folder_is_taken(write: Write, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert len(_contents(tmp_path / "out")) == 2


def test_what_a_killed_write_left_does_not_count(write: Write, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".adapter_config.json.{'0' * 32}.tmp").write_text("{")
    write(tmp_path / "out")
    assert len(_contents(tmp_path / "out")) == 2


@pytest.mark.parametrize("overwrite", [False, True], ids=["unasked", "overwrite"])
@pytest.mark.parametrize("name", ["notes.txt", "config.json", ".hidden"])
def test_folder_with_other_files_is_refused(
    name: str, overwrite: bool, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"absent or an empty folder.* with {name}$"):
        write(tmp_path / "out", overwrite=overwrite)
    assert _contents(tmp_path / "out") == {name: b"mine"}


def test_adapter_is_not_replaced_unasked(write: Write, tmp_path: Path) -> None:
    before = _contents(_adapter(tmp_path / "out"))
    with pytest.raises(FileExistsError, match=r"adapter_model\.safetensors \(overwrite replaces"):
        write(tmp_path / "out")
    assert _contents(tmp_path / "out") == before


def test_overwrite_replaces_an_adapter_and_keeps_files_beside_it(
    write: Write, tmp_path: Path
) -> None:
    before = _contents(_adapter(tmp_path / "out", "README.md"))
    write(tmp_path / "out", overwrite=True)
    after = _contents(tmp_path / "out")
    assert {name for name in before if after[name] == before[name]} == {"README.md"}
    assert after.keys() == before.keys()


def test_adapter_in_a_models_folder_is_never_replaced(write: Write, tmp_path: Path) -> None:
    before = _contents(_adapter(tmp_path / "out", "config.json"))
    with pytest.raises(FileExistsError, match=r"or hold an adapter and no model, got .* config"):
        write(tmp_path / "out", overwrite=True)
    assert _contents(tmp_path / "out") == before


def test_file_in_the_place_of_the_folder_is_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(NotADirectoryError, match="out must be a folder"):
        write(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"


def _fail_in(folder: Path, path: Path) -> None:
    """Make a folder, and be interrupted when a file `path` is there."""
    with made(folder):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
        raise KeyboardInterrupt


def test_failure_takes_away_the_folders_that_were_made(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyboardInterrupt):
        _fail_in(tmp_path / "there" / "new" / "out", tmp_path / "elsewhere" / "file")
    assert list((tmp_path / "there").rglob("*")) == []


def test_failure_keeps_a_folder_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyboardInterrupt):
        _fail_in(tmp_path / "there", tmp_path / "elsewhere" / "file")
    assert (tmp_path / "there").is_dir()


def test_failure_keeps_a_folder_that_holds_something(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _fail_in(tmp_path / "new" / "out", tmp_path / "new" / "somebody's")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["somebody's"]
