"""Adapters that mean harm: refused with a sentence, in time, with nothing written or changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from security_changes import FILES, fifo
from security_changes import folder as make_folder
from security_checks import check_clean, in_time, tree
from security_files import CONFIG, PREFIX, TENSORS, Tiny, adapter_config, write_adapter

import gralora
from gralora.adapters.stored import read_adapter

A0 = f"{PREFIX}layers.0.up.gralora_A"
CATASTROPHIC = r"(.*.*)*(.*.*)*(a+)+$"


def _load(folder: Path) -> None:
    model = Tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        gralora.load_adapter(model, folder)
    finally:
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], value) for name, value in before.items())


READERS: dict[str, Callable[[Path], Any]] = {"read_adapter": read_adapter, "load_adapter": _load}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A good adapter."""
    return write_adapter(tmp_path / "adapter")


def _refused(adapter: Path, message: str) -> None:
    """Both readers refuse it, and nothing on the disk or in the model changes."""
    before = tree(adapter.parent)
    for who, read in READERS.items():
        with in_time(), pytest.raises((ValueError, TypeError, OSError)) as caught:
            read(adapter)
        check_clean(caught.value, who)
        assert message in str(caught.value)
    assert tree(adapter.parent) == before


def test_the_good_adapter_is_read_by_both(adapter: Path) -> None:
    assert set(read_adapter(adapter).layers) == {"layers.0.up", "layers.1.up"}
    model = gralora.load_adapter(Tiny(), adapter)
    stored = load_file(adapter / TENSORS)
    assert torch.equal(model.layers[0].up.gralora_A["default"], stored[A0])


@pytest.mark.parametrize("case", FILES)
def test_spoilt_tensors_are_refused(case: str, adapter: Path) -> None:
    change, message = FILES[case]
    change(adapter / TENSORS, A0)
    _refused(adapter, message)


CONFIGS: dict[str, tuple[str, str]] = {
    "empty": ("", "must be a JSON object"),
    "list": ("[]", "must be a JSON object, got a list"),
    "number": ("1", "must be a JSON object, got a int"),
    "field twice": ('{"r": 4, "r": 8}', "the key 'r' is given twice"),
    "field twice inside": ('{"r": {"a": 1, "a": 2}}', "the key 'a' is given twice"),
    "Infinity": ('{"alpha": Infinity}', "Infinity is no JSON number"),
    "number of 10,000 digits": ('{"r": ' + "9" * 10_000 + "}", "must be a JSON object"),
    "nested a million deep": ('{"r":' * 1_000_000, "must not nest values deeper than 8"),
    "nested ten deep": ('{"r": ' + "[" * 10 + "]" * 10 + "}", "nest values deeper than 8"),
    "not UTF-8": ('{"r": "\udcff"}', "must be a JSON object in UTF-8"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_no_object_are_refused(case: str, adapter: Path) -> None:
    text, message = CONFIGS[case]
    (adapter / CONFIG).write_bytes(text.encode(errors="surrogateescape"))
    _refused(adapter, message)


WRONG: dict[str, list[Any]] = {
    "r": [None, True, 4.0, "4", [4], {}, 0, -1, 10**7, 10**400],
    "hybrid_r": [None, False, 0.5, "0", [], -1],
    "gralora_k": [None, True, 2.0, "2", {}, 0, -2, [2], [2, 2, 2], [2, "2"], 10**30],
    "alpha": [None, True, "8", [8], {}, 1e31, -(10**400)],
    "gralora_dropout": [None, True, "0", [], -0.5, 1.5],
    "bias": [None, True, 1, "some", [], {}],
    "fan_in_fan_out": [None, 0, "false", []],
    "init_weights": [None, 1, "pissa", {}],
    "target_modules": [None, True, 1, "", [], {}, [1], [None], [["up"]], ["../up"], ["up\0"]],
    "modules_to_save": [True, 1, "norm", {}, [1], ["/etc/passwd"], ["..\\norm"], ["\x1b[2J"]],
    "layers_to_transform": [True, "0", {}, [-1], [0.5], [True]],
    "layers_pattern": [True, 1, {}, [1]],
    "base_model_name_or_path": [True, 1, [], {}],
    "task_type": [True, 1, [], {}],
    "peft_type": [None, True, 1, "LORA", "gralora", ["GRALORA"], {}],
}


@pytest.mark.parametrize("field", WRONG)
def test_fields_of_wrong_kinds_are_refused_by_their_name(field: str, adapter: Path) -> None:
    for value in WRONG[field]:
        (adapter / CONFIG).write_text(json.dumps(adapter_config(**{field: value})))
        _refused(adapter, field)


PATTERNS: dict[str, Any] = {
    "list": [1],
    "name with ..": {"../up": 4},
    "value of a wrong kind": {"layers.0.up": "4"},
    "module without tensors": {"layers.7.up": 4},
}


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern", "k_pattern"])
@pytest.mark.parametrize("case", PATTERNS)
def test_wrong_patterns_of_single_layers_are_refused(field: str, case: str, adapter: Path) -> None:
    config = adapter_config(peft_type="GRALORA_EXT", **{field: PATTERNS[case]})
    (adapter / CONFIG).write_text(json.dumps(config))
    _refused(adapter, field)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": CATASTROPHIC},
        {"layers_to_transform": [0], "layers_pattern": CATASTROPHIC},
    ],
    ids=["target_modules", "layers_pattern"],
)
def test_regular_expressions_that_blow_up_are_not_run(
    fields: dict[str, Any], adapter: Path
) -> None:
    (adapter / CONFIG).write_text(json.dumps(adapter_config(**fields)))
    name = "a" * 200 + "!"
    path = adapter / TENSORS
    save_file({k.replace("up", name): v for k, v in load_file(path).items()}, path)
    if not isinstance(fields.get("target_modules"), str):
        (adapter / CONFIG).write_text(json.dumps(adapter_config(**fields, target_modules=[name])))
    with in_time():
        assert set(read_adapter(adapter).layers) == {f"layers.{i}.{name}" for i in range(2)}
    model = Tiny()
    for block in model.layers:
        setattr(block, name, block.up)
        del block.up
    with in_time():
        gralora.load_adapter(model, adapter)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
@pytest.mark.parametrize("make", [fifo, make_folder], ids=["pipe", "folder"])
def test_what_is_no_regular_file_is_refused(
    name: str, make: Callable[[Path], None], adapter: Path
) -> None:
    make(adapter / name)
    _refused(adapter, "must be a regular file")


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_links_to_devices_are_refused(name: str, adapter: Path) -> None:
    (adapter / name).unlink()
    (adapter / name).symlink_to("/dev/zero")
    _refused(adapter, "must be a regular file")


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_links_that_lead_in_a_circle_are_refused(name: str, adapter: Path) -> None:
    (adapter / name).unlink()
    (adapter / name).symlink_to(name)
    _refused(adapter, "")


def test_pickled_adapters_are_refused_unread(adapter: Path) -> None:
    (adapter / TENSORS).rename(adapter / "adapter_model.bin")
    _refused(adapter, "holds pickled code")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("key", [A0, f"{PREFIX}norm.bias"], ids=["factor", "saved module"])
def test_safe_refuses_numbers_that_are_not_finite(value: float, key: str, adapter: Path) -> None:
    path = adapter / TENSORS
    values = load_file(path)
    values[key].view(-1)[-1] = value
    save_file(values, path)
    with pytest.raises(ValueError, match="all numbers must be finite") as caught:
        read_adapter(adapter, safe=True)
    check_clean(caught.value, "read_adapter")
    assert key in str(caught.value)
    tensors = read_adapter(adapter)
    assert "layers.0.up" in tensors.layers


def test_reading_needs_no_right_to_write(adapter: Path) -> None:
    for path in (adapter / CONFIG, adapter / TENSORS):
        os.chmod(path, 0o400)
    os.chmod(adapter, 0o500)
    before = tree(adapter.parent)
    read_adapter(adapter, safe=True)
    assert tree(adapter.parent) == before
