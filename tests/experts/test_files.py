"""Adapters of fused experts on disk: saved, loaded, and exported as LoRA that PEFT loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from expert_models import BOTH, FAMILIES, experts_of, fill, injected, mixtral, tokens
from safetensors.torch import load_file, save_file
from torch import nn

import gralora
from gralora.adapters.stored import read_adapter
from gralora.adapters.swapping import load_into

EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)
EXTENDED = pytest.mark.filterwarnings("ignore:save_adapter. PEFT cannot load this adapter")
SETTINGS = {
    "experts alone": {},
    "a linear layer too": {"target_modules": ["q_proj"]},
    "hybrid on a rectangular grid": {"k": (2, 4), "hybrid_r": 3},
    "ranks of their own": {"rank_pattern": {"down_proj": 16}, "use_rslora": True},
    "one parameter": {"target_parameters": ["experts.down_proj"]},
    "one block": {"k": 1, "dropout": 0.1},
}
EACH_SETTING = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def pair(family: str, settings: dict[str, object]) -> tuple[nn.Module, nn.Module]:
    """A model with a filled adapter, and its base."""
    torch.manual_seed(1)
    adapted = injected(family, **settings)
    torch.manual_seed(1)
    return adapted, FAMILIES[family]()


@EXTENDED
@EACH_FAMILY
@EACH_SETTING
def test_round_trip(family: str, settings: dict[str, object], tmp_path: Path):
    adapted, base = pair(family, settings)
    gralora.save_adapter(adapted, tmp_path)
    gralora.load_adapter(base, tmp_path)
    ids = tokens()
    with torch.no_grad():
        assert torch.equal(base(ids).logits, adapted(ids).logits)
    saved, loaded = gralora.adapter_state_dict(adapted), gralora.adapter_state_dict(base)
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)


@EXTENDED
def test_what_is_written(tmp_path: Path):
    adapted, _ = pair("mixtral", {})
    gralora.save_adapter(adapted, tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["peft_type"] == "GRALORA_EXT"
    assert content["target_modules"] == []
    assert content["target_parameters"] == [
        f"model.layers.{layer}.mlp.{name}" for layer in range(2) for name in BOTH
    ]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.mlp.experts.gate_up_proj.gralora_A"
    assert tensors[key].shape == (4, 2, 16, 8)
    assert torch.equal(tensors[key], experts_of(adapted).gate_up_proj.gralora_A["default"])


def test_saving_says_that_peft_cannot_load_it(tmp_path: Path):
    adapted, _ = pair("mixtral", {})
    with pytest.warns(
        UserWarning, match="PEFT cannot load this adapter, since it adapts fused exp"
    ):
        gralora.save_adapter(adapted, tmp_path)


@EXTENDED
def test_a_merged_adapter_is_saved_like_others(tmp_path: Path):
    adapted, base = pair("mixtral", {})
    ids = tokens()
    with torch.no_grad():
        want = adapted(ids).logits
        for weights in experts_of(adapted).weights.values():
            weights.merge()
        gralora.save_adapter(adapted, tmp_path)
        torch.testing.assert_close(gralora.load_adapter(base, tmp_path)(ids).logits, want)


@EXTENDED
def test_another_model_is_refused(tmp_path: Path):
    adapted, _ = pair("qwen-moe", {})
    gralora.save_adapter(adapted, tmp_path)
    base = mixtral()
    before = dict(base.named_modules())
    with pytest.raises(ValueError, match="must have shape"):
        gralora.load_adapter(base, tmp_path)
    assert dict(base.named_modules()) == before
    base.model.layers[1].mlp = nn.Identity()
    with pytest.raises(
        ValueError, match=r"got 2 of 4 adapted modules that the model does not have"
    ):
        gralora.load_adapter(base, tmp_path)


@EXTENDED
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda names: [*names, "model.layers.9.mlp.experts.down_proj"],
            "target_parameters of the config must name parameters that the tensors adapt",
        ),
        (lambda names: names[:-1], "adapted modules that the model does not have"),
        (lambda names: "experts.down_proj", "must be a list of at most"),
        (lambda names: [], r"target_modules of the config must be a string or a list of module"),
    ],
    ids=["one more", "one less", "a text", "none"],
)
def test_a_config_of_other_parameters_is_refused(change, text: str, tmp_path: Path):
    adapted, base = pair("mixtral", {})
    gralora.save_adapter(adapted, tmp_path)
    path = tmp_path / "adapter_config.json"
    content = json.loads(path.read_text())
    content["target_parameters"] = change(content["target_parameters"])
    path.write_text(json.dumps(content))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=text):
        gralora.load_adapter(base, tmp_path)


@EACH_FAMILY
@EACH_SETTING
@EXTENDED
def test_peft_computes_the_same_with_the_exported_lora(
    family: str, settings: dict[str, object], tmp_path: Path
):
    peft = pytest.importorskip("peft")
    adapted, base = pair(family, settings)
    gralora.save_adapter(adapted, tmp_path / "adapter")
    result = gralora.export_lora(tmp_path / "adapter", tmp_path / "lora")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "lora")
    ids = tokens()
    with torch.no_grad():
        want = adapted.eval()(ids).logits
        torch.testing.assert_close(theirs.eval()(ids).logits, want, rtol=1e-4, atol=1e-5)
    spec = experts_of(adapted).down_proj.adapters["default"]
    name = "model.layers.0.mlp.experts.down_proj"
    assert result.ranks[name] == spec.k_out * spec.r + spec.hybrid_r
    assert any("fused experts" in obstacle for obstacle in result.obstacles)


@EXTENDED
def test_an_export_in_another_dtype(tmp_path: Path):
    adapted, _ = pair("mixtral", {})
    gralora.save_adapter(adapted, tmp_path / "adapter")
    result = gralora.export_lora(tmp_path / "adapter", tmp_path / "lora", dtype=torch.bfloat16)
    assert result.dtypes == ("bfloat16",)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.0.mlp.experts"
    assert {key for key in tensors if key.startswith(stem)} == {
        f"{stem}{inner}.lora_{factor}.weight" for inner in ("", ".base_layer") for factor in "AB"
    }
    # [E*rank, N] and [M, rank*E] of down_proj, with a rank of k*r for each of the four experts.
    assert tensors[f"{stem}.lora_A.weight"].shape == (4 * 16, 48)
    assert tensors[f"{stem}.lora_B.weight"].shape == (32, 4 * 16)


@EXTENDED
def test_the_reader_of_linear_layers_refuses_it_and_says_what_takes_it(tmp_path: Path):
    adapted, _ = pair("mixtral", {})
    gralora.save_adapter(adapted, tmp_path)
    text = r"must be of linear layers here, got fused .* \(gralora.load_adapter, load_into, merge_"
    with pytest.raises(ValueError, match=text + "checkpoint, combine, inspect_adapter and export"):
        read_adapter(tmp_path)


@EXTENDED
@EACH_SETTING
def test_numbers_of_another_adapter_are_loaded_into_a_model(
    settings: dict[str, object], tmp_path: Path
):
    adapted, _ = pair("mixtral", settings)
    torch.manual_seed(1)
    other = injected("mixtral", **(settings | {"alpha": 40}))
    gralora.save_adapter(other, tmp_path)
    pointers = [parameter.data_ptr() for parameter in adapted.parameters()]
    load_into(adapted, tmp_path)
    assert [parameter.data_ptr() for parameter in adapted.parameters()] == pointers
    ids = tokens()
    with torch.no_grad():
        want = other.eval()(ids).logits
        torch.testing.assert_close(adapted.eval()(ids).logits, want, rtol=1e-4, atol=1e-5)


@EXTENDED
def test_an_adapter_of_other_parameters_is_not_loaded_into_a_model(tmp_path: Path):
    adapted, _ = pair("mixtral", {"target_parameters": ["experts.down_proj"]})
    gralora.save_adapter(injected("mixtral"), tmp_path)
    text = "one that also has model.layers.0.mlp.experts.gate_up_proj"
    with pytest.raises(ValueError, match=text):
        load_into(adapted, tmp_path)


@EXTENDED
@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((5, 2, 4, 24), "must have the number of experts as their first size, the same from 1 up"),
        ((4, 2, 5, 24), "must have shape"),
        ((4, 2, 4), "must have three sizes from 1 up"),
    ],
    ids=["experts", "rank", "sizes"],
)
def test_an_export_checks_the_shapes(shape: tuple[int, ...], text: str, tmp_path: Path):
    adapted, _ = pair("mixtral", {"r": 4})
    gralora.save_adapter(adapted, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.0.mlp.experts.gate_up_proj.gralora_B"] = torch.zeros(
        shape
    )
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=text):
        gralora.export_lora(tmp_path, tmp_path / "lora")


@EXTENDED
def test_training_goes_on_after_loading(tmp_path: Path):
    adapted, base = pair("mixtral", {})
    gralora.save_adapter(adapted, tmp_path)
    gralora.load_adapter(base, tmp_path)
    ids = tokens()
    steps = []
    for model in (adapted, base):
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        for _ in range(3):
            loss = model(ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(loss.item())
    assert steps[:3] == steps[3:]
    assert steps[2] < steps[0]


def test_a_fresh_adapter_is_loaded_into_by_key():
    adapted, _ = pair("mixtral", {})
    other = injected("mixtral")
    fill(other)
    values = gralora.adapter_state_dict(adapted)
    gralora.load_adapter_state_dict(other, values)
    loaded = gralora.adapter_state_dict(other)
    assert all(torch.equal(values[key], loaded[key]) for key in values)
