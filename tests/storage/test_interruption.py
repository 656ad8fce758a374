"""Saving that is stopped half way: the folder holds the old adapter or the new one, whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from storage_models import llama, our_loaded, our_model, outputs, peft_saved
from torch import Tensor

from gralora.storage import tensor_file
from gralora.storage.adapter_files import load_adapter, save_adapter

NAMES = ("adapter_model.safetensors", "adapter_config.json")
OLD: dict[str, Any] = {"r": 8, "alpha": 16}
NEW: dict[str, Any] = {"r": 4, "alpha": 30, "target_modules": ["o_proj"], "dropout": 0.1}
WORKER = Path(__file__).parent / "support" / "storage_killed_saver.py"


class StopError(Exception):
    """Stands for the end of the process."""


def _stop_at(monkeypatch: pytest.MonkeyPatch, name: str, after: bool) -> None:
    """Stop at the rename of one file; nothing is tidied up, as after a kill."""
    replace = os.replace

    def stopping(source: Any, target: Path) -> None:
        if target.name != name:
            return replace(source, target)
        if after:
            replace(source, target)
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
        raise StopError

    monkeypatch.setattr(os, "replace", stopping)


def _adapters() -> tuple[Any, Any]:
    return our_model(llama(), **OLD), our_model(llama(), **NEW)


STOPS = {
    "before the tensors": (NAMES[0], False, "old"),
    "after the tensors": (NAMES[0], True, "new"),
    "before the config": (NAMES[1], False, "new"),
    "after the config": (NAMES[1], True, "new"),
}


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("by_peft", [False, True], ids=["over ours", "over PEFT's"])
def test_a_stop_leaves_one_whole_adapter(
    stop: str, by_peft: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, after, present = STOPS[stop]
    old, new = _adapters()
    expected = {"old": outputs(old), "new": outputs(new)}
    if by_peft:
        peft_saved(llama(), tmp_path, alpha=17)
        expected["old"] = outputs(our_loaded(llama(), tmp_path))
    else:
        save_adapter(old, tmp_path)
    with monkeypatch.context() as patch:
        _stop_at(patch, name, after)
        with pytest.raises(StopError):
            save_adapter(new, tmp_path)
    assert torch.equal(outputs(our_loaded(llama(), tmp_path)), expected[present])
    save_adapter(old, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "README.md") == sorted(
        NAMES
    )
    assert torch.equal(outputs(our_loaded(llama(), tmp_path)), outputs(old))


def test_a_second_stop_does_not_lose_what_the_first_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = _adapters()
    save_adapter(old, tmp_path)
    for model, name, after in ((new, NAMES[1], False), (old, NAMES[0], False)):
        with monkeypatch.context() as patch:
            _stop_at(patch, name, after)
            with pytest.raises(StopError):
                save_adapter(model, tmp_path)
    assert torch.equal(outputs(our_loaded(llama(), tmp_path)), outputs(new))


def test_a_stopped_first_save_leaves_the_adapter_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = our_model(llama(), **OLD)
    with monkeypatch.context() as patch:
        _stop_at(patch, NAMES[0], False)
        with pytest.raises(StopError):
            save_adapter(model, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"must hold adapter_model\.safetensors"):
        load_adapter(llama(), tmp_path)
    with monkeypatch.context() as patch:
        _stop_at(patch, NAMES[1], False)
        with pytest.raises(StopError):
            save_adapter(model, tmp_path)
    assert torch.equal(outputs(our_loaded(llama(), tmp_path)), outputs(model))


def test_a_leftover_that_was_not_finished_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = _adapters()
    save_adapter(old, tmp_path)
    for digit in "0f":
        (tmp_path / f".adapter_config.json.{digit * 32}.tmp").write_text('{"r": ')
    with monkeypatch.context() as patch:
        _stop_at(patch, NAMES[1], False)
        with pytest.raises(StopError):
            save_adapter(new, tmp_path)
    assert torch.equal(outputs(our_loaded(llama(), tmp_path)), outputs(new))


@pytest.mark.parametrize("file", NAMES)
def test_files_of_two_adapters_are_refused(file: str, tmp_path: Path) -> None:
    for name, model in zip(("old", "new"), _adapters(), strict=True):
        save_adapter(model, tmp_path / name)
    (tmp_path / "old" / file).write_bytes((tmp_path / "new" / file).read_bytes())
    with pytest.raises(ValueError, match="do not belong together"):
        load_adapter(llama(), tmp_path / "old")


@pytest.mark.parametrize(
    ("field", "value"),
    [("base_model_name_or_path", "elsewhere"), ("peft_version", "9.9"), ("revision", "main"),
     ("auto_mapping", None), ("inference_mode", False)],
    ids=lambda value: str(value),
)  # fmt: skip
def test_edits_of_notes_are_harmless(field: str, value: object, tmp_path: Path) -> None:
    model = our_model(llama())
    save_adapter(model, tmp_path)
    _edit(tmp_path, field, value)
    assert torch.equal(outputs(our_loaded(llama(), tmp_path)), outputs(model))


@pytest.mark.parametrize(
    ("field", "value"), [("alpha", 17), ("gralora_k", 4), ("bias", "all")], ids=str
)
def test_edits_that_change_the_result_are_refused(
    field: str, value: object, tmp_path: Path
) -> None:
    save_adapter(our_model(llama()), tmp_path)
    _edit(tmp_path, field, value)
    with pytest.raises(ValueError, match="do not belong together"):
        load_adapter(llama(), tmp_path)


def _edit(directory: Path, field: str, value: object) -> None:
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, field: value}))


def test_a_full_disk_leaves_the_old_adapter_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = _adapters()
    save_adapter(old, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written = []

    def half(tensor: Tensor) -> memoryview:
        written.append(tensor)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return original(tensor)

    original = tensor_file.bytes_of
    with monkeypatch.context() as patch:
        patch.setattr(tensor_file, "bytes_of", half)
        with pytest.raises(OSError, match="No space left on device"):
            save_adapter(new, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_hundred_kills_at_random_moments_never_leave_a_mixture(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(WORKER), str(tmp_path / "adapter"), "100"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert sum(seen["loaded"].values()) == 100
    # Both adapters must have been met, and saves must have been cut off under way.
    assert min(seen["loaded"].values()) > 0, seen
    assert seen["cut off"] > 0, seen
    loaded = load_file(tmp_path / "adapter" / NAMES[0])
    assert len(loaded) in (2, 4)
