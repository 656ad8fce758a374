"""Routers that are trained as a whole, merged into checkpoints whose names are not the model's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expert_models import BOTH, FAMILIES, fill, tokens
from safetensors.torch import load_file, save_file
from torch import nn

import gralora

pytestmark = pytest.mark.filterwarnings("ignore:save_adapter. PEFT cannot load this adapter")
ROUTER = "model.layers.1.mlp.gate.weight"
TARGETS = {
    "experts": {"target_modules": (), "target_parameters": BOTH},
    "attention": {"target_modules": ("q_proj",)},
}
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)
EACH_TARGET = pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)


def saved(family: str, folder: Path, **settings: object) -> nn.Module:
    """A model with a filled adapter; the base and the adapter are in folders."""
    torch.manual_seed(1)
    model = FAMILIES[family]()
    model.save_pretrained(folder / "base")
    gralora.inject(model, gralora.GraLoRAConfig(r=8, k=2, **settings))
    fill(model)
    gralora.save_adapter(model, folder / "adapter")
    return model


def merge(folder: Path, weight: float = 1.0) -> gralora.MergeReport:
    adapters = [(folder / "adapter", weight)]
    return gralora.merge_checkpoint(folder / "base", adapters, folder / "merged")


def in_one_file(folder: Path) -> Path:
    return folder / "model.safetensors"


@EACH_FAMILY
@EACH_TARGET
def test_a_merged_model_computes_with_the_trained_router(
    family: str, targets: dict[str, object], tmp_path: Path
):
    model = saved(family, tmp_path, modules_to_save=["mlp.gate"], **targets)
    report = merge(tmp_path)
    assert report.added == ()
    assert set(load_file(in_one_file(tmp_path / "merged"))) == set(
        load_file(in_one_file(tmp_path / "base"))
    )
    merged = type(model).from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    ids = tokens()
    with torch.no_grad():
        want = model(ids).logits
        torch.testing.assert_close(merged(ids).logits, want, rtol=1e-4, atol=1e-5)


@EACH_FAMILY
def test_a_weight_takes_that_part_of_the_routers_change(family: str, tmp_path: Path):
    model = saved(family, tmp_path, modules_to_save=["mlp.gate"], **TARGETS["attention"])
    merge(tmp_path, weight=0.25)
    kind = type(model)
    base, merged = (
        kind.from_pretrained(tmp_path / name, dtype=torch.float32).get_parameter(ROUTER)
        for name in ("base", "merged")
    )
    trained = gralora.merge_and_unload(model).get_parameter(ROUTER)
    torch.testing.assert_close(merged, base + 0.25 * (trained - base))


@EACH_FAMILY
def test_experts_that_are_saved_as_a_whole_are_refused_where_the_base_has_them_one_by_one(
    family: str, tmp_path: Path
):
    saved(family, tmp_path, modules_to_save=["mlp.experts"], **TARGETS["attention"])
    text = r"must be there too, got model\.layers\.0\.mlp\.experts\.down_proj, "
    with pytest.raises(ValueError, match=text):
        merge(tmp_path)
    assert not (tmp_path / "merged").exists()


def test_a_router_under_a_name_that_is_not_known_is_refused(tmp_path: Path):
    saved("mixtral", tmp_path, modules_to_save=["mlp.gate"], **TARGETS["attention"])
    path = in_one_file(tmp_path / "base")
    other = {
        name.replace("block_sparse_moe.gate", "moe.router"): value
        for name, value in load_file(path).items()
    }
    save_file(other, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"merge in memory, with gralora\.merge_and_unload"):
        merge(tmp_path)
    assert not (tmp_path / "merged").exists()
