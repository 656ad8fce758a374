"""Saving and loading beside other adapters, under wrappers, and in every state of a model."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from storage_models import (
    assert_unchanged,
    llama,
    our_loaded,
    our_model,
    outputs,
    peft_saved,
    snapshot,
    train_like,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject
from gralora.injection.record import adapter_records
from gralora.injection.switching import enable_adapters, set_adapter
from gralora.nn import GraLoRALinear
from gralora.storage.adapter_files import load_adapter, save_adapter
from gralora.storage.pair import WHO, in_folder
from gralora.storage.state_dict import adapter_state_dict

FULL: dict[str, Any] = {"hybrid_r": 2, "bias": "all", "modules_to_save": ["lm_head"]}
FILES = ("adapter_model.safetensors", "adapter_config.json")


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_two_files_are_written_and_nothing_else(tmp_path: Path) -> None:
    save_adapter(our_model(llama()), tmp_path / "new" / "folder")
    assert set(_files(tmp_path / "new" / "folder")) == set(FILES)


def test_foreign_files_stay(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "optimizer.pt").write_bytes(b"mine too")
    save_adapter(our_model(llama()), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert (tmp_path / "optimizer.pt").read_bytes() == b"mine too"


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    model = our_model(llama(attention_bias=True), use_rslora=True, **FULL)
    for name in ("first", "second"):
        save_adapter(model, tmp_path / name)
    assert _files(tmp_path / "first") == _files(tmp_path / "second")


def test_another_process_saves_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from storage_models import llama, our_model;"
        "from gralora.storage.adapter_files import save_adapter;"
        "save_adapter(our_model(llama(), use_rslora=True), Path(sys.argv[1]))"
    )
    support = str(Path(__file__).parent / "support")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": support},
            cwd=tmp_path,
        )
        for seed in ("1", "2")
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert _files(tmp_path / "1") == _files(tmp_path / "2")


def test_loading_activates_the_adapter_and_trains_it_alone(tmp_path: Path) -> None:
    model = our_model(llama(), **FULL)
    save_adapter(model, tmp_path)
    again = load_adapter(llama(), tmp_path, "second")
    trains = {name for name, p in again.named_parameters() if p.requires_grad}
    expected = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.replace("second", "default") for name in trains} == expected
    assert torch.equal(outputs(again), outputs(model))


def test_loading_returns_the_model_in_its_mode(tmp_path: Path) -> None:
    save_adapter(our_model(llama()), tmp_path)
    for training in (True, False):
        model = llama().train(training)
        assert load_adapter(model, tmp_path) is model
        assert {module.training for module in model.modules()} == {training}


def test_loading_beside_another_adapter_switches_to_the_new_one(tmp_path: Path) -> None:
    first = our_model(llama(), target_modules=["q_proj", "up_proj"])
    second = our_model(llama(), r=4, modules_to_save=["lm_head"])
    save_adapter(second, tmp_path)
    model = load_adapter(copy.deepcopy(first), tmp_path, "second")
    assert list(adapter_records(model)) == ["default", "second"]
    assert torch.equal(outputs(model), outputs(second))
    set_adapter(model, "default")
    assert torch.equal(outputs(model), outputs(first))


def test_one_file_can_be_loaded_under_two_names(tmp_path: Path) -> None:
    source = our_model(llama(), modules_to_save=["lm_head"])
    save_adapter(source, tmp_path)
    model = load_adapter(load_adapter(llama(), tmp_path, "a"), tmp_path, "b")
    for name in ("a", "b"):
        set_adapter(model, name)
        assert torch.equal(outputs(model), outputs(source))


def test_a_loaded_adapter_can_be_trained_on_and_saved_again(tmp_path: Path) -> None:
    save_adapter(our_model(llama(), **FULL), tmp_path)
    model = our_loaded(llama(), tmp_path)
    train_like(model, seed=9)
    save_adapter(model, tmp_path)
    assert torch.equal(outputs(our_loaded(llama(), tmp_path)), outputs(model))


def test_a_second_adapter_is_saved_alone(tmp_path: Path) -> None:
    model = our_model(llama())
    inject(model, GraLoRAConfig(r=4, target_modules=["o_proj"]), "second")
    train_like(model, seed=4)
    save_adapter(model, tmp_path, "second")
    assert len(load_file(tmp_path / FILES[0])) == 4
    assert torch.equal(outputs(our_loaded(llama(), tmp_path)), outputs(model))


@pytest.mark.parametrize("state", ["merged", "merged for good", "off", "inactive"])
def test_an_adapter_is_saved_in_every_state(state: str, tmp_path: Path) -> None:
    model = our_model(llama(), modules_to_save=["lm_head"])
    save_adapter(model, tmp_path / "before")
    if state == "off":
        enable_adapters(model, False)
    elif state == "inactive":
        inject(model, GraLoRAConfig(r=4, target_modules=["o_proj"]), "second")
    else:
        for module in model.modules():
            if isinstance(module, GraLoRALinear):
                module.merge(keep="cpu" if state == "merged" else False)
    save_adapter(model, tmp_path / "after")
    assert _files(tmp_path / "after") == _files(tmp_path / "before")


@pytest.mark.parametrize("wrap", ["compiled", "data-parallel", "both", "compiled layer"])
def test_wrapped_models_give_the_same_files(
    wrap: str, tmp_path: Path, one_process_group: None
) -> None:
    model = our_model(llama(attention_bias=True), **FULL)
    save_adapter(model, tmp_path / "bare")
    wrapped: nn.Module = model
    if wrap in ("data-parallel", "both"):
        wrapped = DistributedDataParallel(wrapped)
    if wrap in ("compiled", "both"):
        wrapped = torch.compile(wrapped)
    if wrap == "compiled layer":
        model.model.layers[0] = torch.compile(model.model.layers[0])
    save_adapter(wrapped, tmp_path / "wrapped")
    assert _files(tmp_path / "wrapped") == _files(tmp_path / "bare")


def test_factors_with_other_strides_are_saved(tmp_path: Path) -> None:
    model = our_model(llama())
    factors = model.model.layers[0].self_attn.q_proj.gralora_A
    expected = outputs(model)
    factors["default"] = nn.Parameter(factors["default"].detach().permute(2, 0, 1).contiguous()
                                      .permute(1, 2, 0))  # fmt: skip
    assert not factors["default"].is_contiguous()
    save_adapter(model, tmp_path)
    assert torch.equal(outputs(our_loaded(llama(), tmp_path)), expected)


def test_buffers_of_saved_modules_are_kept(tmp_path: Path) -> None:
    def base() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))

    model = inject(base(), GraLoRAConfig(r=4, target_modules=["0"], modules_to_save=["1"]))
    train_like(model)
    for _ in range(3):
        model.train()(torch.randn(16, 8))
    save_adapter(model.eval(), tmp_path)
    tensors = load_file(tmp_path / FILES[0])
    assert tensors["base_model.model.1.num_batches_tracked"] == 3
    x = torch.randn(4, 8)
    assert torch.equal(our_loaded(base(), tmp_path)(x), model(x))


def test_the_base_models_name_is_kept(tmp_path: Path) -> None:
    base = llama()
    base.name_or_path = "someone/model"
    save_adapter(our_model(base), tmp_path)
    config = adapter_records(our_loaded(llama(), tmp_path))["default"].config
    assert config.base_model_name_or_path == "someone/model"


def test_a_taken_name_is_refused(tmp_path: Path) -> None:
    save_adapter(our_model(llama()), tmp_path)
    model = our_model(llama(), r=4)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"must be new, got 'default' \(present: 'default'; load_"):
        load_adapter(model, tmp_path)
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", ["a.b", "", "keys", "../x"])
def test_a_name_that_cannot_be_stored_is_refused(name: str, tmp_path: Path) -> None:
    save_adapter(our_model(llama()), tmp_path)
    with pytest.raises(ValueError, match="load_adapter: an adapter name must be a plain identifi"):
        load_adapter(llama(), tmp_path, name)


def test_a_wrapped_model_is_refused(tmp_path: Path) -> None:
    save_adapter(our_model(llama()), tmp_path)
    with pytest.raises(ValueError, match="must not be wrapped yet, got a OptimizedModule"):
        load_adapter(torch.compile(llama()), tmp_path)


def test_a_second_adapter_with_biases_is_refused(tmp_path: Path) -> None:
    base = llama(attention_bias=True)
    save_adapter(our_model(base, bias="all"), tmp_path)
    model = our_model(base, "first", bias="gralora_only")
    before = snapshot(model)
    with pytest.raises(ValueError, match="only one adapter of a model may train biases"):
        load_adapter(model, tmp_path, "second")
    assert_unchanged(model, before)


def test_a_model_on_the_meta_device_is_refused(tmp_path: Path) -> None:
    save_adapter(our_model(llama()), tmp_path)
    model = llama().to("meta")
    with pytest.raises(RuntimeError, match=r"must have values, got .* on the meta device"):
        load_adapter(model, tmp_path)
    assert not adapter_records(model)


def test_an_unknown_adapter_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_adapter: no adapter is named 'x'"):
        save_adapter(our_model(llama()), tmp_path / "new", "x")
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="save_adapter: directory must be a folder, got"):
        save_adapter(our_model(llama()), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_a_files_place_changes_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=f"{name} must not be a folder"):
        save_adapter(our_model(llama()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"directory must be an existing folder, got .*/no"):
        load_adapter(llama(), tmp_path / "no")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    peft_saved(llama(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"must hold {name}"):
        load_adapter(llama(), tmp_path)


def test_pickled_tensors_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.bin holds pickled code"):
        load_adapter(llama(), tmp_path)


@pytest.mark.parametrize(
    ("name", "target"),
    [("a/b", "a/b"), ("line\nbreak", "line\nbreak"), ("line\nbreak", "plain")],
    ids=["slash", "line break", "line break in a bias"],
)
def test_a_name_that_is_refused_on_loading_is_refused_on_saving(
    name: str, target: str, tmp_path: Path
) -> None:
    model = nn.ModuleDict({"plain": nn.Linear(4, 4), name: nn.Linear(4, 4)})
    inject(model, GraLoRAConfig(r=4, target_modules=[target], bias="all"))
    with pytest.raises(ValueError, match="must be one that can be loaded again, got one that is"):
        save_adapter(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_string_is_a_directory_too(tmp_path: Path) -> None:
    model = our_model(llama())
    save_adapter(model, str(tmp_path))
    assert torch.equal(outputs(load_adapter(llama(), str(tmp_path))), outputs(model))


def test_loading_leaves_the_files_alone(tmp_path: Path) -> None:
    save_adapter(our_model(llama()), tmp_path)
    before = _files(tmp_path)
    tmp_path.chmod(0o555)
    try:
        our_loaded(llama(), tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert _files(tmp_path) == before


def test_other_tensors_of_the_model_stay_the_same_objects(tmp_path: Path) -> None:
    save_adapter(our_model(llama()), tmp_path)
    model = llama()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    load_adapter(model, tmp_path)
    after = {name: id(parameter) for name, parameter in model.named_parameters()}
    assert before.items() <= after.items()
    assert len(after) - len(before) == len(adapter_state_dict(model))


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("a", "load: a: rank must be a number"),
        ("some/rank", "load: some/rank: rank must be a number"),
    ],
)
def test_a_refusal_names_its_folder_whatever_it_is_called(folder: str, expected: str) -> None:
    refusal = in_folder(ValueError(f"{WHO}: rank must be a number"), Path(folder), who="load")
    assert str(refusal) == expected


def test_a_refusal_that_names_its_folder_does_so_once() -> None:
    refusal = in_folder(ValueError(f"{WHO}: a/b must hold a file"), Path("a/b"), who="load")
    assert str(refusal) == "load: a/b must hold a file"
