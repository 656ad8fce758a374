"""Adapters that have only a part of the layers that their list of targets names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints_on_disk import (
    adapted,
    gpt2,
    llama,
    load,
    logits,
    plain_base,
    save_adapter,
    save_base,
)
from safetensors.torch import load_file, save_file

import gralora
from gralora.adapters.stored import StoredLayer
from gralora.adapters.write import write_adapter
from gralora.checkpoints.merge import merge_checkpoint
from gralora.nn.spec import make_spec

LACKING = r"must cover what target_modules names in the model, got none for .*layers\.3"


def _base(folder: Path, layers: int) -> Path:
    return save_base(llama(num_hidden_layers=layers), folder)


def _adapter(folder: Path, layers: int, **settings: Any) -> Path:
    return save_adapter(adapted(llama(num_hidden_layers=layers), **settings), folder)


def _retarget(directory: Path, targets: Any, **fields: Any) -> Path:
    """Change the targets of an adapter, and make its tensors those that go with any config."""
    path = directory / "adapter_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "target_modules": targets, **fields}))
    path = directory / "adapter_model.safetensors"
    save_file(load_file(path), path)
    return directory


def test_adapter_of_fewer_layers_is_refused_as_in_memory(tmp_path: Path) -> None:
    base = _base(tmp_path / "base", 5)
    adapter = _adapter(tmp_path / "adapter", 3, target_modules=["q_proj", "v_proj"])
    _retarget(adapter, ["q_proj", "v_proj"])
    with pytest.raises(ValueError, match=LACKING):
        gralora.load_adapter(load(base), adapter)
    with pytest.raises(ValueError, match=rf"merge_checkpoint: the tensors {LACKING}"):
        merge_checkpoint(base, adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_layers_that_were_not_to_be_transformed_need_no_factors(tmp_path: Path) -> None:
    base = _base(tmp_path / "base", 5)
    adapter = _adapter(tmp_path / "adapter", 5, layers_to_transform=[0, 2])
    _retarget(adapter, ["q_proj", "v_proj", "down_proj"], layers_to_transform=[0, 2])
    assert merge_checkpoint(base, adapter, tmp_path / "out").layers == 6
    expected = gralora.load_adapter(load(base), adapter).eval()
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(expected))


def test_layers_under_another_prefix_are_found(tmp_path: Path) -> None:
    base = save_base(gpt2(n_layer=5), tmp_path / "base")
    model = adapted(gpt2(n_layer=3), target_modules=["c_attn"])
    adapter = _retarget(save_adapter(model, tmp_path / "adapter"), ["c_attn"])
    with pytest.raises(ValueError, match=r"got none for (transformer\.)?h\.3\.attn\.c_attn"):
        merge_checkpoint(base, adapter, tmp_path / "out")


def _write(directory: Path, *modules: str) -> Path:
    spec = make_spec(8, 8, r=4, k=2, alpha=4, hybrid_r=0, dropout=0.0, use_rslora=False)
    layer = StoredLayer(spec, torch.randn(2, 4, 4), torch.randn(2, 4, 4))
    write_adapter(directory, dict.fromkeys(modules, layer))
    return directory


UP0, UP1 = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"
BESIDE: dict[str, str] = {
    "experts that transformers fuses": "model.layers.0.mlp.experts.3.up_proj",
    "a layer behind the last": "model.layers.2.mlp.up_proj",
    "a layer of another name that predicts": "mtp.layers.0.mlp.up_proj",
}


@pytest.mark.parametrize("case", BESIDE)
def test_matrices_that_the_model_does_not_have_need_no_factors(case: str, tmp_path: Path) -> None:
    values = {f"{name}.weight": torch.randn(8, 8) for name in (UP0, UP1, BESIDE[case])}
    base = plain_base(tmp_path / "base", values, model_type="llama", num_hidden_layers=2)
    adapter = _retarget(_write(tmp_path / "adapter", UP0, UP1), ["up_proj"])
    assert merge_checkpoint(base, adapter, tmp_path / "out").layers == 2


def test_experts_count_where_the_adapter_has_some(tmp_path: Path) -> None:
    experts = [f"model.layers.0.mlp.experts.{number}.up_proj" for number in range(3)]
    values = {f"{name}.weight": torch.randn(8, 8) for name in experts}
    base = plain_base(tmp_path / "base", values, model_type="llama", num_hidden_layers=1)
    adapter = _retarget(_write(tmp_path / "adapter", *experts[:2]), ["up_proj"])
    with pytest.raises(
        ValueError, match=r"got none for model\.layers\.0\.mlp\.experts\.2\.up_proj "
    ):
        merge_checkpoint(base, adapter, tmp_path / "out")


def test_expressions_are_neither_run_nor_compared(tmp_path: Path) -> None:
    values = {f"{name}.weight": torch.randn(8, 8) for name in (UP0, UP1, "a" * 60)}
    base = plain_base(tmp_path / "base", values, model_type="llama")
    adapter = _retarget(_write(tmp_path / "adapter", UP0), r"(a+)+\.up_proj|.*")
    assert merge_checkpoint(base, adapter, tmp_path / "out").layers == 1
