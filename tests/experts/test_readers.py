"""Saved adapters of fused experts without their model: inspected, and merged on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from expert_models import FAMILIES, experts_of, fill, injected, tokens
from safetensors.torch import load_file, save_file
from torch import nn

import gralora
from gralora.adapters.convert import convert
from gralora.adapters.inspection import inspect_adapter
from gralora.adapters.stored import read_with_experts
from gralora.checkpoints.provenance import settings_of
from gralora.cli import main
from gralora.nn import ExpertWeights

pytestmark = pytest.mark.filterwarnings("ignore:save_adapter. PEFT cannot load this adapter")
SETTINGS = {
    "experts alone": {},
    "an odd grid and a plain part": {"k": (1, 4), "hybrid_r": 3},
    "a linear layer too": {"target_modules": ["q_proj"], "rank_pattern": {"down_proj": 16}},
    "one parameter": {"target_parameters": ["experts.down_proj"], "use_rslora": True},
}
EACH_SETTING = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def saved(family: str, folder: Path, **settings: object) -> nn.Module:
    """A model with a filled adapter; the base and the adapter are in folders."""
    torch.manual_seed(1)
    FAMILIES[family]().save_pretrained(folder / "base")
    torch.manual_seed(1)
    model = injected(family, **settings)
    gralora.save_adapter(model, folder / "adapter")
    return model


def fused(folder: Path, family: str) -> None:
    """Replace the base by a checkpoint that has fused experts as one tensor each."""
    torch.manual_seed(1)
    values = {name: v.contiguous() for name, v in FAMILIES[family]().state_dict().items()}
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(values, folder / "model.safetensors", {"format": "pt"})


def weights_of(model: nn.Module) -> dict[str, ExpertWeights]:
    return {n: m for n, m in model.named_modules() if isinstance(m, ExpertWeights) and m.adapters}


@EACH_SETTING
def test_inspection_measures_each_expert(settings: dict[str, object], tmp_path: Path):
    model = saved("mixtral", tmp_path, **settings)
    report = inspect_adapter(tmp_path / "adapter")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert report.parameters == trained
    for name, weights in weights_of(model).items():
        owner, _, attribute = name.rpartition(".")
        for expert, delta in enumerate(weights.delta_weight().detach().double()):
            layer = report.layers[f"{owner}.{expert}.{attribute}"]
            assert layer.norm == pytest.approx(float(delta.norm()), rel=1e-5)
            values = torch.linalg.svdvals(delta)
            assert layer.largest_rank >= int((values > 1e-4 * values[0]).sum())
            shares = values / values.sum()
            rank = float(torch.special.entr(shares).sum().exp())
            assert layer.entropy_rank == pytest.approx(rank, rel=1e-2)


def test_the_command_shows_experts_in_the_order_of_their_numbers(tmp_path: Path):
    saved("qwen-moe", tmp_path)
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "adapter"), "--json"])
    assert result.exit_code == 0, result.output
    layers = json.loads(result.output)["layers"]
    of_one = [name for name in layers if name.startswith("model.layers.1.mlp.experts.")]
    assert [name.split(".")[5] for name in of_one] == [str(e) for e in range(8) for _ in "ab"]


@EACH_SETTING
@pytest.mark.parametrize("lies", ["one by one", "fused"])
def test_merging_on_disk(settings: dict[str, object], lies: str, tmp_path: Path):
    check_merged("mixtral", settings, lies, tmp_path)


def test_merging_into_experts_with_gate_and_up_by_name(tmp_path: Path):
    check_merged(
        "qwen-moe", {"r": 12, "k_pattern": {"gate_up_proj": (3, 4)}}, "one by one", tmp_path
    )


def check_merged(family: str, settings: dict[str, object], lies: str, tmp_path: Path) -> None:
    model = saved(family, tmp_path, **settings)
    if lies == "fused":
        fused(tmp_path / "base", family)
    keys = set(load_file(tmp_path / "base" / "model.safetensors"))
    assert any(key.endswith("experts.down_proj") for key in keys) == (lies == "fused")
    gralora.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert set(load_file(tmp_path / "merged" / "model.safetensors")) == keys

    merged = type(model).from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    wanted = gralora.merge_and_unload(model)
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    ids = tokens()
    with torch.no_grad():
        want = wanted(ids).logits
        torch.testing.assert_close(merged(ids).logits, want, rtol=1e-4, atol=1e-5)


def test_two_adapters_with_weights(tmp_path: Path):
    first = saved("mixtral", tmp_path)
    gralora.save_adapter(fill_again(first), tmp_path / "second")
    folders = [(tmp_path / "adapter", 0.5), (tmp_path / "second", -2.0)]
    gralora.merge_checkpoint(tmp_path / "base", folders, tmp_path / "merged")
    torch.manual_seed(1)
    base = FAMILIES["mixtral"]()
    both = {}
    for folder, weight in folders:
        other = gralora.load_adapter(FAMILIES["mixtral"](), folder)
        for name, weights in weights_of(other).items():
            delta = weight * weights.delta_weight().detach()
            both[name] = both[name] + delta if name in both else delta
    merged = type(base).from_pretrained(tmp_path / "merged", dtype=torch.float32)
    for name, delta in both.items():
        want = base.get_parameter(name) + delta
        torch.testing.assert_close(merged.get_parameter(name), want, rtol=1e-5, atol=1e-6)


def fill_again(model: nn.Module) -> nn.Module:
    fill(model)
    return model


@pytest.mark.parametrize("lies", ["one by one", "fused"])
def test_another_number_of_experts_is_refused(lies: str, tmp_path: Path):
    saved("mixtral", tmp_path)
    sizes = FAMILIES["mixtral"]().config
    sizes.num_local_experts = 6
    larger = type(FAMILIES["mixtral"]())(sizes)
    larger.save_pretrained(tmp_path / "larger")
    if lies == "fused":
        values = {name: v.contiguous() for name, v in larger.state_dict().items()}
        save_file(values, tmp_path / "larger" / "model.safetensors", {"format": "pt"})
    text = "number of experts, got 4 and more" if lies == "one by one" else "must fit the base"
    with pytest.raises(ValueError, match=text):
        gralora.merge_checkpoint(tmp_path / "larger", tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_merge_does_not_go_on_with_other_experts(tmp_path: Path):
    model = saved("mixtral", tmp_path)
    device = torch.device("cpu")
    before = settings_of(device, [(read_with_experts(tmp_path / "adapter"), 1.0)])
    with torch.no_grad():
        experts_of(model, 1).down_proj.gralora_B["default"][3, 0, 0, 0] += 1
    gralora.save_adapter(model, tmp_path / "adapter")
    assert settings_of(device, [(read_with_experts(tmp_path / "adapter"), 1.0)]) != before


def test_there_is_nothing_to_convert(tmp_path: Path):
    saved("mixtral", tmp_path)
    text = "PEFT cannot load, since it adapts fused experts; gralora.load_adapter loads it, and "
    with pytest.raises(ValueError, match=text + "gralora export-lora writes it as a LoRA"):
        convert(tmp_path / "adapter", tmp_path / "out")


def test_a_checkpoint_without_such_experts_is_refused(tmp_path: Path):
    saved("mixtral", tmp_path)
    FAMILIES["qwen-moe"]().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"must fit the base model, got .* an adapter of \[M, N\]"):
        gralora.merge_checkpoint(tmp_path / "other", tmp_path / "adapter", tmp_path / "merged")


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("square", [False, True], ids=["oblong", "square"])
def test_fused_experts_that_lie_transposed(transposed: bool, square: bool, tmp_path: Path):
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.is_transposed = transposed
            self.inner = nn.Parameter(torch.randn(3, 8, 8 if square else 12))

    model = nn.ModuleDict({"experts": Owner()})
    (tmp_path / "base").mkdir()
    save_file(model.state_dict(), tmp_path / "base" / "model.safetensors")
    config = gralora.GraLoRAConfig(r=4, k=2, target_modules=(), target_parameters=["experts.inner"])
    gralora.inject(model, config)
    fill(model)
    gralora.save_adapter(model, tmp_path / "adapter")
    arguments = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    if square:
        with pytest.raises(ValueError, match="the layout of square fused experts must be known"):
            gralora.merge_checkpoint(*arguments)
    # The sizes of oblong matrices decide.
    layout = ("conv1d" if transposed else "linear") if square else None
    gralora.merge_checkpoint(*arguments, layout=layout)
    weights = model["experts"].inner
    weights.merge()
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    torch.testing.assert_close(merged["experts.inner"], weights.weight.detach())
