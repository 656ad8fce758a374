"""Adapters that PEFT cannot build: marked as such, refused by PEFT, exact here."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from storage_models import llama, our_loaded, our_model, outputs, peft_loaded

from gralora.injection.record import adapter_records
from gralora.storage.adapter_files import load_adapter, save_adapter

Q0, Q1 = (f"model.layers.{i}.self_attn.q_proj" for i in (0, 1))
V0 = "model.layers.0.self_attn.v_proj"
EXTENDED: dict[str, tuple[dict[str, Any], str]] = {
    "rectangular": ({"k": (2, 4)}, "its grids are not square"),
    "one rectangular": ({"k_pattern": {Q0: (4, 2)}}, "its grids are not square"),
    "ranks": ({"rank_pattern": {Q1: 4}, "hybrid_r": 2}, "its ranks differ between layers"),
    "alphas": ({"alpha_pattern": {"v_proj": 5.5}}, "its scales differ between layers"),
    "grids": ({"k_pattern": {Q0: 4}}, "its grids differ between layers"),
    "all of them": (
        {
            "rank_pattern": {Q0: 16, "v_proj": 12},
            "alpha_pattern": {V0: 3},
            "k_pattern": {Q0: (2, 4), "v_proj": 4},
            "use_rslora": True,
            "hybrid_r": 3,
            "dropout": 0.5,
        },
        "its grids are not square",
    ),
    "rsLoRA with two ranks": (
        {"rank_pattern": {Q0: 6}, "use_rslora": True},
        "its ranks differ between layers",
    ),
}
UNIFORM: dict[str, dict[str, Any]] = {
    "automatic grid": {"k": "auto"},
    "square pair": {"k": (2, 2)},
    "pattern for every layer": {"rank_pattern": {"[qv]_proj": 16}, "alpha_pattern": {".*": 7}},
    "pattern without effect": {"k_pattern": {"q_proj": 2}},
}


def _config(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "adapter_config.json").read_text())


@pytest.mark.parametrize("case", EXTENDED)
def test_what_peft_cannot_build_is_saved_as_an_extension_and_says_so(
    case: str, tmp_path: Path
) -> None:
    settings, reason = EXTENDED[case]
    with pytest.warns(UserWarning, match=f"PEFT cannot load this adapter, since {reason}"):
        save_adapter(our_model(llama(), **settings), tmp_path)
    assert _config(tmp_path)["peft_type"] == "GRALORA_EXT"
    with pytest.raises(KeyError, match="GRALORA_EXT"):
        peft_loaded(llama(), tmp_path)


@pytest.mark.parametrize("case", EXTENDED)
@pytest.mark.filterwarnings("ignore:save_adapter")
def test_an_extension_loads_exactly(case: str, tmp_path: Path) -> None:
    model = our_model(llama(), **EXTENDED[case][0])
    save_adapter(model, tmp_path)
    again = our_loaded(llama(), tmp_path)
    assert adapter_records(again)["default"].targets == adapter_records(model)["default"].targets
    assert torch.equal(outputs(again), outputs(model))


@pytest.mark.parametrize("case", UNIFORM)
def test_what_comes_out_alike_in_every_layer_stays_pefts(case: str, tmp_path: Path) -> None:
    model = our_model(llama(), **UNIFORM[case])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        save_adapter(model, tmp_path)
    assert _config(tmp_path)["peft_type"] == "GRALORA"
    theirs = outputs(peft_loaded(llama(), tmp_path))
    torch.testing.assert_close(theirs, outputs(model), rtol=2e-5, atol=2e-5)


@pytest.mark.filterwarnings("ignore:save_adapter")
def test_patterns_hold_full_names_of_the_layers_that_differ(tmp_path: Path) -> None:
    save_adapter(
        our_model(llama(), rank_pattern={"1.*q_proj": 4}, k_pattern={Q1: (2, 4)}), tmp_path
    )
    config = _config(tmp_path)
    assert config["rank_pattern"] == {Q1: 4}
    assert config["k_pattern"] == {Q1: [2, 4]}
    assert config["alpha_pattern"] == {}


@pytest.mark.filterwarnings("ignore:save_adapter")
@pytest.mark.parametrize("key", ["q_proj", "(a+)+b", "model.layers.7.self_attn.q_proj"])
def test_patterns_of_a_file_must_name_its_modules(key: str, tmp_path: Path) -> None:
    save_adapter(our_model(llama(), rank_pattern={Q0: 4}), tmp_path)
    _edit_without_digest(tmp_path, rank_pattern={key: 4})
    with pytest.raises(ValueError, match="rank_pattern of the config must name modules that"):
        load_adapter(llama(), tmp_path)


def _edit_without_digest(directory: Path, **fields: Any) -> None:
    from safetensors.torch import load_file, save_file

    path = directory / "adapter_model.safetensors"
    save_file(load_file(path), path)
    config = {**_config(directory), **fields}
    (directory / "adapter_config.json").write_text(json.dumps(config))
