"""The fork of the method's authors: PEFT's keys and shapes with another meaning of r and alpha."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from storage_models import TOKENS, llama, our_loaded, peft_saved
from torch import Tensor

from gralora.injection.record import adapter_records
from gralora.storage.adapter_files import load_adapter, save_adapter


def _as_fork(directory: Path, **fields: Any) -> None:
    """Turn PEFT's config into the fork's of the same adapter, but for its alpha."""
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    del config["alpha"]
    config["r"] += config["hybrid_r"]
    path.write_text(json.dumps({**config, **fields}))


def _q_proj_by_hand(directory: Path, x: Tensor, scale: float, k: int) -> Tensor:
    """Layer 0's query projection in float64, from the file and the fork's definition."""
    from safetensors.torch import load_file

    name = "base_model.model.model.layers.0.self_attn.q_proj.gralora_"
    factors = {
        key.removeprefix(name): value.double()
        for key, value in load_file(directory / "adapter_model.safetensors").items()
    }
    A, B = factors["A"], factors["B"]
    y = x @ llama().model.layers[0].self_attn.q_proj.weight.double().T
    n, m, s = A.shape[1], B.shape[2], A.shape[2] // k
    for i in range(k):
        for j in range(k):
            latent = x[..., j * n : (j + 1) * n] @ A[j, :, i * s : (i + 1) * s]
            y[..., i * m : (i + 1) * m] += scale * latent @ B[i, j * s : (j + 1) * s]
    if "A_general.weight" in factors:
        y += scale * x @ factors["A_general.weight"].T @ factors["B_general.weight"].T
    return y


@pytest.mark.parametrize("hybrid_r", [0, 4], ids=["plain", "hybrid"])
def test_the_fork_scales_by_its_alpha_over_the_total_rank(hybrid_r: int, tmp_path: Path) -> None:
    peft_saved(llama(), tmp_path, r=8, hybrid_r=hybrid_r)
    _as_fork(tmp_path, gralora_alpha=30)
    model = our_loaded(llama(), tmp_path)
    x = torch.randn(5, 32)
    actual = model.model.layers[0].self_attn.q_proj(x)
    expected = _q_proj_by_hand(tmp_path, x.double(), 30 / (8 + hybrid_r), 2)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_fork_adapter_is_saved_again_as_pefts(tmp_path: Path) -> None:
    peft_saved(llama(), tmp_path, r=8, hybrid_r=4)
    _as_fork(tmp_path, gralora_alpha=30)
    model = our_loaded(llama(), tmp_path)
    save_adapter(model, tmp_path / "again")
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert (config["r"], config["hybrid_r"], config["alpha"]) == (8, 4, 30)
    assert "gralora_alpha" not in config
    with torch.no_grad():
        expected = model(TOKENS).logits
        assert torch.equal(our_loaded(llama(), tmp_path / "again")(TOKENS).logits, expected)


def test_both_alphas_are_refused(tmp_path: Path) -> None:
    peft_saved(llama(), tmp_path)
    _as_fork(tmp_path, gralora_alpha=30, alpha=30)
    with pytest.raises(ValueError, match=r"must have alpha .* or gralora_alpha .*, got both"):
        load_adapter(llama(), tmp_path)


@pytest.mark.parametrize("hybrid_r", [8, 9], ids=["all hybrid", "more than all"])
def test_a_total_rank_without_a_granular_part_is_refused(hybrid_r: int, tmp_path: Path) -> None:
    peft_saved(llama(), tmp_path)
    _as_fork(tmp_path, gralora_alpha=30, r=8, hybrid_r=hybrid_r)
    with pytest.raises(ValueError, match="r is the total rank and must exceed hybrid_r, got r=8"):
        load_adapter(llama(), tmp_path)


def test_a_fork_config_is_not_read_as_pefts(tmp_path: Path) -> None:
    peft_saved(llama(), tmp_path, r=8, hybrid_r=4)
    _as_fork(tmp_path, gralora_alpha=30)
    specs = adapter_records(our_loaded(llama(), tmp_path))["default"].targets.values()
    assert {(spec.r, spec.hybrid_r, spec.scaling) for spec in specs} == {(8, 4, 30 / 12)}
