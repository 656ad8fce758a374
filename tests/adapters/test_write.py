"""write_adapter: files that this package and PEFT load with the same numbers."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_disk import Q0, V1, edit_config, llama, logits, our_adapter, peft_adapter
from peft import PeftModel

import gralora
from gralora.adapters.stored import StoredAdapter, StoredLayer, read_adapter
from gralora.adapters.write import write_adapter
from gralora.nn.spec import make_spec

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hybrid": {"hybrid_r": 2},
    "one block": {"k": 1},
    "rsLoRA": {"use_rslora": True},
    "biases": {"bias": "gralora_only"},
    "all biases": {"bias": "all"},
    "saved modules": {"modules_to_save": ["lm_head", "norm"]},
}
EXTENDED: dict[str, dict[str, Any]] = {
    "rectangular": {"k": (2, 4), "hybrid_r": 2},
    "ranks": {"rank_pattern": {Q0: 16}},
    "alphas": {"alpha_pattern": {V1: 3.5}},
    "rsLoRA of two ranks": {"rank_pattern": {Q0: 6}, "use_rslora": True},
}


def _write(directory: Path, stored: StoredAdapter) -> None:
    write_adapter(
        directory, stored.layers, biases=stored.biases, saved=stored.saved, bias=stored.config.bias
    )


@pytest.mark.parametrize("kind", [*KINDS, *EXTENDED])
@pytest.mark.filterwarnings("ignore:write_adapter")
def test_what_was_read_is_written_again(kind: str, tmp_path: Path) -> None:
    base = llama(attention_bias=True)
    model = our_adapter(tmp_path / "in", base, **{**KINDS, **EXTENDED}[kind])
    _write(tmp_path / "out", read_adapter(tmp_path / "in"))
    again = gralora.load_adapter(llama(attention_bias=True), tmp_path / "out").eval()
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_peft_gives_the_same_logits(kind: str, tmp_path: Path) -> None:
    base = llama(attention_bias=True)
    model = our_adapter(tmp_path / "in", base, **KINDS[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _write(tmp_path / "out", read_adapter(tmp_path / "in"))
    peft = PeftModel.from_pretrained(llama(attention_bias=True), tmp_path / "out").eval()
    torch.testing.assert_close(logits(peft), logits(model))


@pytest.mark.parametrize("kind", EXTENDED)
def test_what_peft_cannot_build_is_marked_and_says_so(kind: str, tmp_path: Path) -> None:
    our_adapter(tmp_path / "in", **EXTENDED[kind])
    with pytest.warns(UserWarning, match="write_adapter: PEFT cannot load this adapter"):
        _write(tmp_path / "out", read_adapter(tmp_path / "in"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "GRALORA_EXT"


def test_the_forks_adapters_become_pefts(tmp_path: Path) -> None:
    model = peft_adapter(tmp_path, alpha=10, hybrid_r=2)
    edit_config(tmp_path, r=10, gralora_alpha=10, alpha=None)
    _write(tmp_path / "out", read_adapter(tmp_path))
    peft = PeftModel.from_pretrained(llama(), tmp_path / "out").eval()
    assert torch.equal(logits(peft), logits(model))


def test_equal_adapters_give_equal_files(tmp_path: Path) -> None:
    our_adapter(tmp_path / "in")
    stored = read_adapter(tmp_path / "in")
    for name in ("one", "two"):
        _write(tmp_path / name, stored)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def _layer(**settings: Any) -> StoredLayer:
    plain = {"r": 4, "k": 2, "alpha": 8, "hybrid_r": 0, "dropout": 0.0, "use_rslora": False}
    spec = make_spec(8, 8, **{**plain, **settings})
    lora = (torch.ones(spec.hybrid_r, 8), torch.ones(8, spec.hybrid_r)) if spec.hybrid_r else ()
    return StoredLayer(spec, torch.ones(2, 4, 2 * spec.s), torch.ones(2, spec.r, 4), *lora)


REFUSED: dict[str, tuple[dict[str, StoredLayer], str]] = {
    "no layer": ({}, "layers must hold at least one"),
    "two hybrid ranks": (
        {"a": _layer(), "b": _layer(hybrid_r=2)},
        "hybrid_r must be the same in all layers, got 0, 2",
    ),
    "a scale of its own": (
        {"a": dataclasses.replace(_layer(), spec=dataclasses.replace(_layer().spec, scaling=3.0))},
        "scaling of a must follow",
    ),
    "a factor of another rank": (
        {"a": dataclasses.replace(_layer(), B=torch.ones(2, 6, 4))},
        "must have shape",
    ),
    "a name that leaves the folder": ({"../a": _layer()}, "a module's name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_not_be_read_is_refused_and_nothing_written(case: str, tmp_path: Path) -> None:
    layers, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        write_adapter(tmp_path / "out", layers)
    assert str(caught.value).startswith("write_adapter: ")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(NotADirectoryError, match="write_adapter: directory must be a folder"):
        write_adapter(tmp_path / "out", {"a": _layer()})
    assert (tmp_path / "out").read_text() == "mine"
