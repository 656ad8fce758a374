"""Base models that mean harm, through the command: one line, exit code 1, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from security_changes import FILES, fifo
from security_changes import folder as make_folder
from security_checks import check_clean, in_time, tree
from security_files import INDEX, SHARDS, TENSORS, write_adapter, write_base

from gralora.checkpoints.folder import open_checkpoint
from gralora.cli import main

KEY = "layers.0.up.weight"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A base, an adapter, and a shard outside of the base that it must not reach."""
    write_adapter(tmp_path / "adapter")
    base = write_base(tmp_path / "base")
    outside = tmp_path / "outside"
    outside.mkdir()
    for shard in SHARDS:
        shutil.copy(base / shard, outside / shard)
    return tmp_path


def _merge(root: Path, *options: str) -> Any:
    command = ["merge", str(root / "base"), str(root / "adapter"), str(root / "out"), *options]
    with in_time():
        return CliRunner().invoke(main, command)


def _refused(root: Path, message: str) -> None:
    """The command and the function beneath it refuse; no file appears, goes or changes."""
    before = tree(root)
    result = _merge(root)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("gralora merge: ")
    assert message in lines[0]
    assert tree(root) == before


def _edit_index(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = root / "base" / INDEX
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_good_model_is_merged_and_nothing_else_changes(root: Path) -> None:
    before = tree(root)
    assert _merge(root).exit_code == 0
    after = tree(root)
    assert {path: facts for path, facts in after.items() if path.split("/")[0] != "out"} == before


@pytest.mark.parametrize("case", FILES)
def test_spoilt_shards_are_refused(case: str, root: Path) -> None:
    change, message = FILES[case]
    path = root / "base" / SHARDS[0]
    change(path, KEY)
    _refused(root, message)
    with pytest.raises(ValueError, match=r"^merge_checkpoint: ") as caught:
        open_checkpoint(root / "base")
    check_clean(caught.value, "merge_checkpoint")


NAMES: dict[str, Any] = {
    "up": "../outside/a.safetensors",
    "up through a folder": "x/../../outside/a.safetensors",
    "absolute": "/{root}/outside/a.safetensors",
    "backslashes": "..\\outside\\a.safetensors",
    "drive": "C:\\outside\\a.safetensors",
    "below": "sub/a.safetensors",
    "dot": "./a.safetensors",
    "the folder": ".",
    "the folder above": "..",
    "NUL at the end": "a.safetensors\0",
    "NUL before the suffix": "../outside/a\0.safetensors",
    "empty": "",
    "1,000 characters": "a" * 1000 + ".safetensors",
    "line break": "a\n.safetensors",
    "escape sequence": "\x1b[2Ja.safetensors",
    "half a character": "\ud800.safetensors",
    "right to left": "\u202easnetefas.a.safetensors",
    "number": 1,
    "null": None,
    "list": ["a.safetensors"],
    "object": {"a.safetensors": 1},
}


@pytest.mark.parametrize("case", NAMES)
def test_names_of_shards_that_lead_elsewhere_are_refused(case: str, root: Path) -> None:
    name = NAMES[case]
    if isinstance(name, str):
        name = name.replace("/{root}", str(root))
    _edit_index(root, lambda index: index["weight_map"].update({KEY: name}))
    _refused(root, "must be the plain name of a file in that folder")


INDEXES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no map": (lambda i: i.pop("weight_map"), "must have a weight_map"),
    "list": (lambda i: i.update(weight_map=[]), "must have a weight_map"),
    "string": (lambda i: i.update(weight_map="a.safetensors"), "must have a weight_map"),
    "empty map": (lambda i: i.update(weight_map={}), "must have a weight_map"),
    "config as a shard": (lambda i: i["weight_map"].update({KEY: "config.json"}), "must end in"),
    "pickle as a shard": (lambda i: i["weight_map"].update({KEY: "x.bin"}), "must end in"),
    "missing tensor": (lambda i: i["weight_map"].pop(KEY), "got it wrong for 1"),
    "tensor of no shard": (lambda i: i["weight_map"].update(x=SHARDS[0]), "got it wrong for 1"),
    "wrong shard": (lambda i: i["weight_map"].update({KEY: SHARDS[1]}), "got it wrong for 1"),
    "shard that is missing": (lambda i: i["weight_map"].update(x="c.safetensors"), "is missing"),
    "nested ten deep": (lambda i: i.update(x=[[[[[[[[[[]]]]]]]]]]), "deeper than 8"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_indexes_that_disagree_with_the_shards_are_refused(case: str, root: Path) -> None:
    change, message = INDEXES[case]
    _edit_index(root, change)
    _refused(root, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}', "'x' is given twice"),
        ('{"weight_map": {}, "weight_map": {}}', "'weight_map' is given twice"),
        ("[" * 1_000_000, "must not nest values deeper than 8"),
        ('{"weight_map": NaN}', "NaN is no JSON number"),
        ('["weight_map"]', "must be a JSON object, got a list"),
    ],
    ids=["tensor twice", "map twice", "nested a million deep", "NaN", "list"],
)
@pytest.mark.parametrize("name", [INDEX, "config.json"])
def test_json_that_is_no_plain_object_is_refused(
    name: str, text: str, message: str, root: Path
) -> None:
    (root / "base" / name).write_text(text)
    _refused(root, message)


@pytest.mark.parametrize("name", [SHARDS[0], INDEX, "config.json"])
@pytest.mark.parametrize("make", [fifo, make_folder], ids=["pipe", "folder"])
def test_what_is_no_regular_file_is_refused(
    name: str, make: Callable[[Path], None], root: Path
) -> None:
    make(root / "base" / name)
    _refused(root, "must be a regular file")


def test_a_pipe_beside_the_weights_is_refused(root: Path) -> None:
    os.mkfifo(root / "base" / "tokenizer.json")
    _refused(root, "must be a regular file")


def test_a_device_in_the_place_of_a_shard_is_refused(root: Path) -> None:
    path = root / "base" / SHARDS[0]
    path.unlink()
    try:
        os.mknod(path, 0o020666, os.makedev(1, 5))
        path.open("rb").close()
    except OSError:
        pytest.skip("devices cannot be made here")
    _refused(root, "must be a regular file")


LINKS: dict[str, tuple[str, str]] = {
    "to a file outside": ("../outside/a.safetensors", "files must lie in the folder"),
    "through a linked folder": ("linked/a.safetensors", "files must lie in the folder"),
    "through another link": ("link", "files must lie in the folder"),
    "to a device": ("/dev/zero", "files must lie in the folder"),
    "to nothing": ("nowhere", "is missing"),
    "to itself": (SHARDS[0], ""),
}


@pytest.mark.parametrize("case", LINKS)
def test_links_in_the_place_of_a_shard_are_refused(case: str, root: Path) -> None:
    target, message = LINKS[case]
    base = root / "base"
    (base / "linked").symlink_to(root / "outside")
    (base / "link").symlink_to("linked/a.safetensors")
    (base / SHARDS[0]).unlink()
    (base / SHARDS[0]).symlink_to(target)
    _refused(root, message)


@pytest.mark.parametrize("name", [INDEX, "config.json", "tokenizer.json"])
def test_links_beside_the_weights_that_lead_out_are_refused(name: str, root: Path) -> None:
    path = root / "base" / name
    path.write_text(path.read_text() if path.exists() else "{}")
    path.rename(root / "outside" / name)
    path.symlink_to(root / "outside" / name)
    _refused(root, "files must lie in the folder")


def test_links_within_the_folder_are_followed(root: Path) -> None:
    base = root / "base"
    (base / SHARDS[0]).rename(base / "weights")
    (base / SHARDS[0]).symlink_to("weights")
    assert _merge(root).exit_code == 0
    assert not (root / "out" / SHARDS[0]).is_symlink()


@pytest.mark.parametrize("name", ["out", ".out.merging"])
def test_links_in_the_place_of_the_output_are_not_followed(name: str, root: Path) -> None:
    target = root / "mine"
    target.mkdir()
    (root / name).symlink_to(target)
    _refused(root, "")


def test_a_foreign_folder_in_the_place_of_the_workspace_is_kept(root: Path) -> None:
    (root / ".out.merging").mkdir()
    (root / ".out.merging" / "thesis.txt").write_text("mine")
    _refused(root, "must be absent or left by a merge")


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_adapters_with_numbers_that_are_not_finite_are_refused(value: float, root: Path) -> None:
    path = root / "adapter" / TENSORS
    values = load_file(path)
    next(iter(values.values())).view(-1)[0] = value
    save_file(values, path)
    _refused(root, "all numbers must be finite")


@pytest.mark.parametrize("name", ["modeling_x.py", "weights.bin", "weights.pt", "run.sh", "x.so"])
def test_code_and_pickles_do_not_go_along(name: str, root: Path) -> None:
    (root / "base" / name).write_text("raise SystemExit")
    assert _merge(root).exit_code == 0
    assert not (root / "out" / name).exists()
