"""Files that are hostile, broken, or another model's: refused by name, and nothing happens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from storage_models import assert_unchanged, llama, our_loaded, our_model, peft_saved, snapshot
from torch import Tensor, nn

from gralora.storage import adapter_files
from gralora.storage.adapter_files import load_adapter, save_adapter

MISSING = object()
Q0 = "base_model.model.model.layers.0.self_attn.q_proj.gralora_"
CATASTROPHIC = r"(.*.*)*(.*.*)*(a+)+$"

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"{field} missing": ({field: MISSING}, f"must have the field '{field}'")
        for field in ("r", "gralora_k", "alpha", "target_modules")
    },
    "peft_type missing": ({"peft_type": MISSING}, "peft_type must be 'GRALORA' or"),
    "LoRA": ({"peft_type": "LORA"}, "got 'LORA'; peft.PeftModel.from_pretrained loads a LoRA"),
    "peft_type a list": ({"peft_type": ["GRALORA"]}, "peft_type must be 'GRALORA' or"),
    "rank negative": ({"r": -8}, "r of the config must be an int from 1 to 1000000, got r=-8"),
    "rank zero": ({"r": 0}, "r of the config must be an int from 1"),
    "rank huge": ({"r": 10**30}, "r of the config must be an int from 1"),
    "rank a bool": ({"r": True}, "r of the config must be an int from 1"),
    "rank a float": ({"r": 8.0}, "r of the config must be an int from 1"),
    "rank a string": ({"r": "8"}, "r of the config must be an int from 1"),
    "rank null": ({"r": None}, "r of the config must be an int from 1"),
    "rank of other tensors": ({"r": 16}, r"must have shape (2, 16, 16), got (2, 16, 8)"),
    "hybrid rank negative": ({"hybrid_r": -1}, "hybrid_r of the config must be an int from 0"),
    "hybrid rank without tensors": ({"hybrid_r": 2}, "got 8 missing ("),
    "grid zero": ({"gralora_k": 0}, "gralora_k of the config must be an int from 1 up"),
    "grid a bool": ({"gralora_k": True}, "gralora_k of the config must be an int from 1 up"),
    "grid rectangular": ({"gralora_k": [2, 4]}, "gralora_k of the config must be an int"),
    "grid of three": ({"gralora_k": [2, 2, 2]}, "gralora_k of the config must be an int from 1"),
    "grid that does not fit": ({"gralora_k": 3}, "must fit the method, got GraLoRAConfig: r must"),
    "alpha a string": ({"alpha": "16"}, "alpha of the config must be a number"),
    "alpha a bool": ({"alpha": True}, "alpha of the config must be a number"),
    "alpha huge": ({"alpha": 10**400}, "alpha of the config must be a number within"),
    "alpha null": ({"alpha": None}, "alpha of the config must be a number"),
    "dropout above 1": ({"gralora_dropout": 1.5}, "gralora_dropout of the config must be a number"),
    "dropout below 0": ({"gralora_dropout": -0.1}, "gralora_dropout of the config must be a num"),
    "bias unknown": ({"bias": "lora_only"}, 'bias of the config must be "none", "all" or "gralora'),
    "bias a list": ({"bias": []}, 'bias of the config must be "none", "all" or "gralora_only"'),
    "fan_in_fan_out a number": ({"fan_in_fan_out": 1}, "fan_in_fan_out of the config must be true"),
    "another start": ({"init_weights": "pissa"}, "init_weights of the config must be true or f"),
    "no targets": ({"target_modules": []}, "target_modules of the config must be a string or a"),
    "targets null": ({"target_modules": None}, "target_modules of the config must be a string"),
    "target a number": ({"target_modules": [1]}, "target_modules of the config must be a module's"),
    "target with ..": ({"target_modules": ["../q_proj"]}, "must be a module's name: printable"),
    "target with /": ({"target_modules": ["a/q_proj"]}, "must be a module's name: printable"),
    "target with control": ({"target_modules": ["q_proj\x1b[2J"]}, "must be a module's name"),
    "target with newline": ({"target_modules": ["q_proj\n"]}, "must be a module's name"),
    "target with half a character": ({"target_modules": ["\ud800"]}, "must be a module's name"),
    "target too long": ({"target_modules": ["q" * 1001]}, "must be a module's name"),
    "target empty": ({"target_modules": [""]}, "must be a module's name"),
    "targets without some tensors": (
        {"target_modules": ["q_proj"]},
        "got none for model.layers.0.self_attn.v_proj, model.layers.1.self_attn.v_proj (the two",
    ),
    "targets beyond the tensors": (
        {"target_modules": ["q_proj", "v_proj", "o_proj"]},
        "the tensors must cover what target_modules names in the model, got none for "
        "model.layers.0.self_attn.o_proj, model.layers.1.self_attn.o_proj",
    ),
    "layers without some tensors": (
        {"layers_to_transform": [0, 1], "target_modules": ["q_proj", "v_proj", "up_proj"]},
        "the tensors must cover what target_modules names",
    ),
    "layers a string": ({"layers_to_transform": "0"}, "layers_to_transform of the config must"),
    "layers negative": ({"layers_to_transform": [-1]}, "layers_to_transform of the config must"),
    "layers pattern a number": ({"layers_pattern": 3}, "layers_pattern of the config must be"),
    "saved a string": ({"modules_to_save": "lm_head"}, "modules_to_save of the config must be a"),
    "saved with /": ({"modules_to_save": ["/etc"]}, "modules_to_save of the config must be a mod"),
    "saved without tensors": ({"modules_to_save": ["lm_head"]}, "got 1 missing ('base_model"),
    "task a number": ({"task_type": 1}, "task_type of the config must be a string or null"),
    "task without its head": ({"modules_to_save": ["norm"], "task_type": "CAUSAL_LM"}, "missing"),
    **{
        f"{field} of another method": ({field: value}, f"{field} of the config must be absent or")
        for field, value in {
            "use_rslora": True,
            "use_dora": True,
            "rank_pattern": {"q_proj": 4},
            "alpha_pattern": {"q_proj": 4},
            "exclude_modules": ["k_proj"],
            "target_parameters": ["x"],
            "layer_replication": [[0, 1]],
            "lora_alpha": 16,
        }.items()
    },
    "extension with a bad rank": (
        {"peft_type": "GRALORA_EXT", "rank_pattern": {"q_proj": -1}},
        "rank_pattern['q_proj'] of the config must be an int from 1",
    ),
    "extension with a list": (
        {"peft_type": "GRALORA_EXT", "alpha_pattern": [1]},
        "alpha_pattern of the config must be an object of full module names",
    ),
}  # fmt: skip

Tensors = dict[str, Tensor]
TENSORS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "none": (lambda tensors: {}, "the file must hold factors of an adapter, got none"),
    "one missing": (
        lambda tensors: {key: value for key, value in tensors.items() if key != Q0 + "B"},
        f"got 1 missing ('{Q0}B')",
    ),
    "A missing": (
        lambda tensors: {key: value for key, value in tensors.items() if key != Q0 + "A"},
        "got none for model.layers.0.self_attn.q_proj",
    ),
    "one more": (
        lambda tensors: {**tensors, "base_model.model.extra": torch.zeros(1)},
        "got 1 unexpected ('base_model.model.extra')",
    ),
    "base weight of another shape": (
        lambda tensors: {**tensors, "base_model.model.lm_head.weight": torch.zeros(1)},
        "got 1 unexpected ('base_model.model.lm_head.weight')",
    ),
    "base weight with other values": (
        lambda tensors: {**tensors, "base_model.model.lm_head.weight": torch.zeros(64, 32)},
        "lm_head.weight is a frozen tensor of the base model and must equal the model's",
    ),
    "without the prefix": (
        lambda tensors: {
            key.removeprefix("base_model.model."): value for key, value in tensors.items()
        },
        "keys must be printable and begin with 'base_model.model.'",
    ),
    "a key with control characters": (
        lambda tensors: {**tensors, "base_model.model.\x1b[2J": torch.zeros(1)},
        "keys must be printable and begin with",
    ),
    "a key longer than any module's name": (
        lambda tensors: {**tensors, f"base_model.model.{'a.' * 80_000}x.gralora_A": torch.zeros(1)},
        "keys must have at most 1200 characters, got one of 160028",
    ),
    "a factor of no module": (
        lambda tensors: {**tensors, "base_model.model.gralora_A": torch.zeros(1)},
        "got 1 unexpected ('base_model.model.gralora_A')",
    ),
    "a key with a path": (
        lambda tensors: {**tensors, "base_model.model.../../x.gralora_A": torch.zeros(1)},
        "got 1 of 5 adapted modules that the model does not have: ../../x",
    ),
    "an attribute of the model": (
        lambda tensors: {**tensors, "base_model.model.forward.gralora_A": torch.zeros(1)},
        "got 1 of 5 adapted modules that the model does not have: forward",
    ),
    "no linear layer": (
        lambda tensors: {**tensors, "base_model.model.model.norm.gralora_A": torch.zeros(1)},
        "target_modules of the config must name the modules that the tensors adapt, got none for "
        "model.norm",
    ),
    "wrong shape": (
        lambda tensors: {**tensors, Q0 + "A": torch.zeros(2, 8, 16)},
        f"{Q0}A must have shape (2, 16, 8), got (2, 8, 16)",
    ),
    "integers": (
        lambda tensors: {**tensors, Q0 + "A": torch.zeros(2, 16, 8, dtype=torch.int8)},
        f"{Q0}A must be floating (float64, float32, bfloat16, float16), got torch.int8",
    ),
    "8-bit floats": (
        lambda tensors: {**tensors, Q0 + "A": torch.zeros(2, 16, 8).to(torch.float8_e4m3fn)},
        "unsupported dtype",
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good adapter of PEFT's; the numbers in it must stay unread."""
    peft_saved(llama(), tmp_path)
    return tmp_path


def _edit(directory: Path, fields: dict[str, Any]) -> None:
    path = directory / "adapter_config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(
        json.dumps({key: value for key, value in config.items() if value is not MISSING})
    )


def _assert_refused(folder: Path, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused on a bare model and on one with an adapter, before any number was read."""
    if "frozen" not in message:

        def read(*_: object) -> None:
            raise AssertionError("the tensors were read")

        monkeypatch.setattr(adapter_files, "read_tensors", read)
    for model in (llama(), our_model(llama(), "first", target_modules=["o_proj"])):
        before = snapshot(model)
        with pytest.raises((ValueError, TypeError)) as caught:
            load_adapter(model, folder, "second")
        assert message in str(caught.value)
        assert str(caught.value).startswith("load_adapter: ")
        assert_unchanged(model, before)


@pytest.mark.parametrize("case", CONFIGS)
def test_a_hostile_config_is_refused(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, message = CONFIGS[case]
    _edit(folder, fields)
    _assert_refused(folder, message, monkeypatch)


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = TENSORS[case]
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    _assert_refused(folder, message, monkeypatch)


@pytest.mark.parametrize("size", [0, 7, 100, -1], ids=["empty", "7 bytes", "in the header", "last"])
def test_truncated_tensors_are_refused(
    size: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    _assert_refused(folder, "is truncated", monkeypatch)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"r": NaN}', "\0"], ids=repr)
def test_a_config_that_is_no_object_is_refused(
    content: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "adapter_config.json").write_text(content)
    _assert_refused(folder, "must be a JSON object", monkeypatch)


def test_an_adapter_for_more_layers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft_saved(llama(num_hidden_layers=3), tmp_path)
    _edit(tmp_path, {"base_model_name_or_path": "someone/larger"})
    message = (
        "the adapter of base model 'someone/larger' must fit the model, got 2 of 6 adapted "
        "modules that the model does not have: model.layers.2.self_attn.q_proj"
    )
    _assert_refused(tmp_path, message, monkeypatch)


def test_an_adapter_for_fewer_layers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft_saved(llama(num_hidden_layers=1), tmp_path)
    message = "got none for model.layers.1.self_attn.q_proj, model.layers.1.self_attn.v_proj (the"
    _assert_refused(tmp_path, message, monkeypatch)


def test_an_adapter_for_a_wider_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft_saved(llama(hidden_size=64), tmp_path)
    _assert_refused(tmp_path, "must have shape (2, 16, 8), got (2, 32, 8)", monkeypatch)


def test_an_adapter_for_another_architecture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter(our_model(nn.Sequential(nn.Linear(4, 4)), r=4, target_modules=["0"]), tmp_path)
    message = "got 1 of 1 adapted modules that the model does not have: 0 (it has model.layers.0."
    _assert_refused(tmp_path, message, monkeypatch)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": CATASTROPHIC},
        {"target_modules": "("},
        {"layers_to_transform": [0], "layers_pattern": CATASTROPHIC},
        {"layers_to_transform": [0, 1], "layers_pattern": ["layers", "("]},
    ],
    ids=["hostile targets", "broken targets", "hostile layers", "broken layers"],
)
def test_regular_expressions_of_a_file_are_never_run(fields: dict[str, Any], folder: Path) -> None:
    _edit(folder, fields)
    start = time.monotonic()
    model = our_loaded(llama(), folder)
    assert time.monotonic() - start < 5
    assert len([name for name, _ in model.named_parameters() if "gralora_A" in name]) == 4


def test_unknown_fields_without_a_value_are_passed_over(
    folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    _edit(folder, {"new_switch": False, "new_list": [], "new_name": None, "use_dora": False})
    our_loaded(llama(), folder)
    assert not [warning for warning in recwarn if "load_adapter" in str(warning.message)]


def test_an_unknown_field_with_a_value_is_warned_about(folder: Path) -> None:
    _edit(folder, {"new_mode": "fast"})
    with pytest.warns(UserWarning, match="unknown here and were ignored: 'new_mode'"):
        our_loaded(llama(), folder)


def test_a_repeated_saved_module_is_no_error(folder: Path) -> None:
    _edit(folder, {"modules_to_save": ["classifier", "score", "classifier"]})
    our_loaded(llama(), folder)


def test_a_module_that_is_no_linear_layer_is_refused_under_an_expression(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.model.norm.gralora_A": torch.zeros(1)}, path)
    _edit(folder, {"target_modules": ".*"})
    _assert_refused(folder, "LlamaRMSNorm", monkeypatch)
