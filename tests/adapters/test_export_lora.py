"""Adapters as plain LoRAs: the same numbers, and what PEFT and vLLM make of them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_disk import Q0, edit_config, llama, logits, our_adapter, peft_adapter
from loose_layers import SHAPES, dense, random_layer
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from gralora.adapters.export_lora import VLLM_RANKS, export_lora
from gralora.adapters.stored import read_adapter
from gralora.adapters.write import write_adapter

MODELS: dict[str, dict[str, Any]] = {
    "square": {},
    "every layer": {"target_modules": "all-linear", "k": 4},
    "hybrid": {"hybrid_r": 3},
    "rsLoRA": {"use_rslora": True},
    "rectangular": {"k": (2, 4)},
    "ranks, grids and alphas of single layers": {
        "rank_pattern": {Q0: 16, "v_proj": 12},
        "alpha_pattern": {Q0: 3},
        "k_pattern": {Q0: (2, 4), "v_proj": 4},
    },
    "targets as an expression": {"target_modules": r".*\.0\..*[qv]_proj"},
    "biases of adapted layers": {"bias": "gralora_only"},
    "all biases": {"bias": "all"},
    "whole modules": {"modules_to_save": ["lm_head"]},
}


def _base() -> nn.Module:
    return llama(attention_bias=True).double()


def _as_lora(base: nn.Module, directory: Path) -> PeftModel:
    """The LoRA in PEFT; what PEFT finds odd about the files is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        warnings.filterwarnings("error", message="Unexpected keyword arguments")
        return PeftModel.from_pretrained(base, directory, autocast_adapter_dtype=False).eval()


def _config(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "adapter_config.json").read_text())


@pytest.mark.parametrize("case", MODELS)
def test_peft_gives_the_same_logits_with_the_lora(case: str, tmp_path: Path) -> None:
    expected = logits(our_adapter(tmp_path / "adapter", _base(), **MODELS[case]))
    export_lora(tmp_path / "adapter", tmp_path / "lora")
    model = _as_lora(_base(), tmp_path / "lora")
    assert model.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(logits(model), expected, rtol=1e-11, atol=1e-11)
    assert (logits(_base()) - expected).abs().max() > 1e-3


def test_adapter_of_peft_gives_the_same_logits_as_lora(tmp_path: Path) -> None:
    expected = logits(peft_adapter(tmp_path / "adapter", _base(), hybrid_r=4).double())
    export_lora(tmp_path / "adapter", tmp_path / "lora")
    torch.testing.assert_close(logits(_as_lora(_base(), tmp_path / "lora")), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_product_of_the_factors_is_the_weight_difference(shape: str, tmp_path: Path) -> None:
    layer = random_layer(**SHAPES[shape])
    _write(tmp_path / "adapter", {"layer": layer})
    result = export_lora(tmp_path / "adapter", tmp_path / "lora")
    factors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    lora_A = factors["base_model.model.layer.lora_A.weight"]
    lora_B = factors["base_model.model.layer.lora_B.weight"]
    torch.testing.assert_close(lora_B @ lora_A, dense(layer), rtol=1e-13, atol=1e-13)
    spec = layer.spec
    assert result.ranks == {"layer": spec.k_out * spec.k_in * spec.s + spec.hybrid_r}


def test_factors_are_zero_outside_their_block(tmp_path: Path) -> None:
    layer = random_layer(24, 36, r=4, k=2)
    _write(tmp_path / "adapter", {"layer": layer})
    export_lora(tmp_path / "adapter", tmp_path / "lora")
    factors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    lora_A = factors["base_model.model.layer.lora_A.weight"]
    # Latents 4 and 5 are those of output block 1 and input block 0.
    assert torch.equal(lora_A[4:6, 12:], torch.zeros(2, 12).double())
    assert torch.equal(lora_A[4:6, :12], layer.A[0, :, 2:4].T)
    lora_B = factors["base_model.model.layer.lora_B.weight"]
    assert torch.equal(lora_B[:18, 4:6], torch.zeros(18, 2).double())
    assert torch.equal(lora_B[18:, 4:6], layer.spec.scaling * layer.B[1, 0:2].T)


@pytest.mark.parametrize(
    ("alpha", "expected"), [(16, "bfloat16"), (12, "float32")], ids=["scale 2", "scale 1.5"]
)
def test_16_bits_stay_where_they_hold_every_number(
    alpha: float, expected: str, tmp_path: Path
) -> None:
    layer = random_layer(r=8, k=2, alpha=alpha, dtype=torch.bfloat16)
    _write(tmp_path / "adapter", {"layer": layer})
    result = export_lora(tmp_path / "adapter", tmp_path / "lora")
    assert expected in result.dtypes
    factors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    product = [factors[f"base_model.model.layer.lora_{part}.weight"].double() for part in "BA"]
    torch.testing.assert_close(product[0] @ product[1], dense(layer), rtol=1e-14, atol=1e-13)


def test_dtype_rounds_both_factors(tmp_path: Path) -> None:
    _write(tmp_path / "adapter", {"layer": random_layer(alpha=7)})
    result = export_lora(tmp_path / "adapter", tmp_path / "lora", dtype=torch.float16)
    assert result.dtypes == ("float16",)


def test_dtype_that_numbers_overflow_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "adapter", {"layer": random_layer(alpha=1e6)})
    with pytest.raises(ValueError, match="the factors of layer must fit dtype, got numbers up to"):
        export_lora(tmp_path / "adapter", tmp_path / "lora", dtype=torch.float16)
    assert not (tmp_path / "lora").exists()


def test_integer_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"dtype must be floating, got torch\.int8"):
        export_lora(tmp_path, tmp_path / "lora", dtype=torch.int8)


def test_config_has_the_largest_rank_and_scales_by_one(tmp_path: Path) -> None:
    _write(
        tmp_path / "adapter",
        {
            "a.x": random_layer(r=8, k=2),
            "a.y": random_layer(r=12, k=4),
            "b": random_layer(r=12, k=4),
        },
    )
    export_lora(tmp_path / "adapter", tmp_path / "lora")
    config = _config(tmp_path / "lora")
    assert (config["r"], config["lora_alpha"]) == (48, 48)
    assert config["rank_pattern"] == config["alpha_pattern"] == {"a.x": 16}
    assert config["target_modules"] == ["a.x", "a.y", "b"]


@pytest.mark.parametrize("base", ["some/model", None], ids=["known base", "unknown base"])
def test_name_of_the_base_model_is_kept(base: str | None, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", {"x": random_layer()}, base_model_name_or_path=base)
    export_lora(tmp_path / "adapter", tmp_path / "lora")
    assert _config(tmp_path / "lora")["base_model_name_or_path"] == base


@pytest.mark.parametrize(
    ("r", "k", "hybrid_r", "wanted"),
    [(4, 1, 0, 8), (4, 2, 0, 8), (4, 2, 1, 16), (8, 4, 0, 32), (64, 4, 0, 256), (64, 4, 1, 320)],
)
def test_max_lora_rank_is_vllms_next(
    r: int, k: int, hybrid_r: int, wanted: int, tmp_path: Path
) -> None:
    layer = random_layer(8, 8, r=r, k=k, hybrid_r=hybrid_r)
    _write(tmp_path / "adapter", {"layer": layer})
    result = export_lora(tmp_path / "adapter", tmp_path / "lora")
    assert result.max_lora_rank == wanted
    assert result.obstacles == ()
    assert wanted in VLLM_RANKS


def test_rank_above_vllms_largest_is_an_obstacle(tmp_path: Path) -> None:
    _write(tmp_path / "adapter", {"layer": random_layer(8, 8, r=260, k=2)})
    result = export_lora(tmp_path / "adapter", tmp_path / "lora")
    assert (result.rank, result.max_lora_rank) == (520, None)
    (obstacle,) = result.obstacles
    assert "the rank 520 is above 512" in obstacle


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, "whole modules (modules_to_save)"),
        ({"bias": "all"}, "trained biases"),
    ],
    ids=["whole modules", "biases"],
)
def test_what_vllm_does_not_take_is_an_obstacle(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    our_adapter(tmp_path / "adapter", _base(), **settings)
    (obstacle,) = export_lora(tmp_path / "adapter", tmp_path / "lora").obstacles
    assert words in obstacle


def test_setting_of_biases_goes_where_there_are_none(tmp_path: Path) -> None:
    our_adapter(tmp_path / "adapter", llama(attention_bias=False), bias="all")
    assert export_lora(tmp_path / "adapter", tmp_path / "lora").obstacles == ()
    assert _config(tmp_path / "lora")["bias"] == "none"


def test_adapter_of_another_name_lies_in_its_folder(tmp_path: Path) -> None:
    layer = random_layer()
    write_adapter(tmp_path / "saved" / "maths", {"x": layer})
    export_lora(tmp_path / "saved", tmp_path / "lora", "maths")
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    A, B = (tensors[f"base_model.model.x.lora_{part}.weight"] for part in "AB")
    torch.testing.assert_close(B @ A, dense(layer))


@pytest.mark.parametrize("name", ["../maths", "a/b", "..", ""])
def test_adapter_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / "maths", {"x": random_layer()})
    with pytest.raises(ValueError, match="adapter_name must be the name of a folder, got"):
        export_lora(tmp_path / "saved", tmp_path / "lora", name)


def test_own_folder_is_refused(tmp_path: Path) -> None:
    our_adapter(tmp_path)
    before = (tmp_path / "adapter_model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="out must be another folder than the adapter's"):
        export_lora(tmp_path, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == before


def test_files_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    our_adapter(tmp_path / "adapter")
    edit_config(tmp_path / "adapter", peft_type="LORA")
    with pytest.raises(ValueError, match="do not belong together"):
        export_lora(tmp_path / "adapter", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_export_is_that_of_an_adapter_in_memory(tmp_path: Path) -> None:
    our_adapter(tmp_path / "adapter")
    export_lora(tmp_path / "adapter", tmp_path / "a")
    export_lora(read_adapter(tmp_path / "adapter"), tmp_path / "b")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def _write(directory: Path, layers: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        write_adapter(directory, layers)
