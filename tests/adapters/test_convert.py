"""The authors' fork to PEFT: the same numbers, and the scale that the fork means."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_disk import Q0, llama, logits, our_adapter, peft_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import gralora
from gralora.adapters.convert import convert


def _fork(directory: Path, *, gralora_alpha: float = 30, **settings: Any) -> None:
    """PEFT's files of a trained adapter as the fork writes them."""
    peft_adapter(directory, **settings)
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    del config["alpha"]
    config["r"] += config["hybrid_r"]
    config["gralora_alpha"] = gralora_alpha
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("hybrid_r", [0, 4], ids=["plain", "hybrid"])
def test_peft_computes_with_the_scale_of_the_fork(hybrid_r: int, tmp_path: Path) -> None:
    _fork(tmp_path / "fork", hybrid_r=hybrid_r)
    result = convert(tmp_path / "fork", tmp_path / "out")
    model = PeftModel.from_pretrained(llama(), tmp_path / "out").eval()
    layer = model.get_submodule(f"base_model.model.{Q0}")
    # The fork's definition: gralora_alpha over the total rank.
    assert layer.scaling["default"] == pytest.approx(30 / (8 + hybrid_r))
    assert (result.total_rank, result.spec.r, result.spec.hybrid_r) == (8 + hybrid_r, 8, hybrid_r)
    ours = gralora.load_adapter(llama(), tmp_path / "fork").eval()
    torch.testing.assert_close(logits(model), logits(ours), rtol=2e-5, atol=2e-5)


def test_every_tensor_is_kept(tmp_path: Path) -> None:
    settings = {"hybrid_r": 2, "bias": "all", "modules_to_save": ["lm_head"]}
    _fork(tmp_path / "fork", base=llama(attention_bias=True), **settings)
    convert(tmp_path / "fork", tmp_path / "out")
    before, after = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("fork", "out")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_config_is_pefts(tmp_path: Path) -> None:
    _fork(tmp_path / "fork", hybrid_r=4)
    convert(tmp_path / "fork", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    wanted = {"peft_type": "GRALORA", "r": 8, "hybrid_r": 4, "alpha": 30, "gralora_k": 2}
    assert config.items() >= wanted.items()
    assert "gralora_alpha" not in config


def test_adapter_of_peft_is_refused(tmp_path: Path) -> None:
    peft_adapter(tmp_path / "a")
    with pytest.raises(ValueError, match=r"one of the authors' fork.*is PEFT's already"):
        convert(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"k": (2, 4)}, "its grids are not square"),
        ({"rank_pattern": {"v_proj": 4}}, "its ranks differ between layers"),
        ({"alpha_pattern": {"v_proj": 4}}, "its scales differ between layers"),
    ],
    ids=["rectangular", "ranks", "alphas"],
)
def test_extension_is_refused_with_the_reason(
    settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    our_adapter(tmp_path / "a", **settings)
    with pytest.raises(ValueError, match=f"which PEFT cannot load, since {reason}; gralora.load"):
        convert(tmp_path / "a", tmp_path / "b")


def test_lora_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a LoRA; gralora import-lora writes it"):
        convert(tmp_path, tmp_path / "b")


def test_own_folder_is_refused(tmp_path: Path) -> None:
    _fork(tmp_path)
    with pytest.raises(ValueError, match="out must be another folder"):
        convert(tmp_path, tmp_path)
    assert "gralora_alpha" in json.loads((tmp_path / "adapter_config.json").read_text())


def test_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"convert: .*adapter_model\.safetensors"):
        convert(tmp_path, tmp_path / "b")
