"""LoRA of fused experts, as PEFT saves it, written as adapters that compute the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from expert_models import BOTH, FAMILIES, experts_of, fill, tokens
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GptOssConfig, GptOssForCausalLM

import gralora
from gralora.adapters import import_lora
from gralora.adapters.lora_experts import join_experts, split_experts
from gralora.adapters.stored import read_with_experts
from gralora.cli import main

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:write_adapter. PEFT cannot load")

EXPERTS = "model.layers.1.mlp.experts"
SETTINGS: dict[str, dict[str, Any]] = {
    "experts alone": {},
    "a linear layer too": {"target_modules": ["q_proj"]},
    "rsLoRA": {"use_rslora": True},
    "ranks of their own": {"rank_pattern": {"experts.down_proj": 3}},
    "an alpha of its own": {"alpha_pattern": {"experts.down_proj": 3}},
    "one parameter": {"target_parameters": [BOTH[0]]},
    "entries the other way round": {"target_parameters": list(reversed(BOTH))},
    "full names": {"target_parameters": [f"{EXPERTS}.{name[8:]}" for name in BOTH]},
}


def gpt_oss() -> nn.Module:
    """Has experts of the form `[experts, in, out]`, of which one parameter is square."""
    config = GptOssConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.2,
        pad_token_id=0,
    )
    return GptOssForCausalLM(config).eval()


MODELS = {**FAMILIES, "gpt-oss": gpt_oss}


def base(family: str) -> nn.Module:
    torch.manual_seed(1)
    return MODELS[family]()


def saved_by_peft(folder: Path, family: str = "mixtral", **settings: Any) -> nn.Module:
    """PEFT's model with a filled LoRA, which is saved in a folder."""
    values = {"r": 6, "lora_alpha": 9, "target_modules": [], "target_parameters": list(BOTH)}
    model = peft.get_peft_model(base(family), peft.LoraConfig(**(values | settings)))
    torch.manual_seed(2)
    fill(model)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("k", [1, 2, (2, 4)], ids=["1", "2", "2 x 4"])
def test_the_adapter_computes_what_the_lora_does(
    family: str, settings: dict[str, Any], k: Any, tmp_path: Path
) -> None:
    theirs = saved_by_peft(tmp_path / "lora", family, **settings)
    result = import_lora(tmp_path / "lora", tmp_path / "adapter", k=k)
    ours = gralora.load_adapter(base(family), tmp_path / "adapter").eval()
    ids = tokens()
    with torch.no_grad():
        want, plain = theirs(ids).logits, base(family)(ids).logits
        torch.testing.assert_close(ours(ids).logits, want, rtol=1e-4, atol=1e-5)
    assert (want - plain).abs().max() > 0.01
    parameters = [name for name in result.specs if ".experts." in name]
    assert parameters == list(read_with_experts(tmp_path / "adapter").experts)
    k_in = k if isinstance(k, int) else k[1]
    for name in parameters:
        assert result.specs[name].r == k_in * result.ranks[name]


def test_every_number_is_copied(tmp_path: Path) -> None:
    saved_by_peft(tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    import_lora(tmp_path / "lora", tmp_path / "adapter", k=1)
    stored = read_with_experts(tmp_path / "adapter").experts[f"{EXPERTS}.down_proj"]
    lora_A, lora_B = (
        tensors[f"base_model.model.{EXPERTS}.lora_{factor}.weight"] for factor in "AB"
    )
    for expert in range(4):
        assert torch.equal(stored.A[expert, 0].T, lora_A[6 * expert : 6 * (expert + 1)])
        assert torch.equal(stored.B[expert, 0].T, lora_B[:, expert::4])


def test_exporting_gives_the_lora_back(tmp_path: Path) -> None:
    saved_by_peft(tmp_path / "lora")
    import_lora(tmp_path / "lora", tmp_path / "adapter", k=1)
    gralora.export_lora(tmp_path / "adapter", tmp_path / "again")
    first, second = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("lora", "again")
    )
    assert first.keys() == second.keys()
    for key, value in first.items():
        scale = 1.5 if "lora_B" in key else 1
        torch.testing.assert_close(second[key], scale * value, msg=key)


def test_joined_experts_are_split_again() -> None:
    factors = [(torch.randn(3, 5), torch.randn(7, 3)) for _ in range(4)]
    A, B = split_experts(*join_experts(factors), rank=3)
    for expert, (one_A, one_B) in enumerate(factors):
        assert torch.equal(A[expert], one_A)
        assert torch.equal(B[expert], one_B)


def test_the_adapter_is_trained_further(tmp_path: Path) -> None:
    saved_by_peft(tmp_path / "lora")
    import_lora(tmp_path / "lora", tmp_path / "adapter", k=2)
    model = gralora.load_adapter(base("mixtral"), tmp_path / "adapter")
    ids = tokens()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(4):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad.any() for p in experts_of(model).parameters() if p.requires_grad)


def test_the_command(tmp_path: Path) -> None:
    saved_by_peft(tmp_path / "lora")
    words = ["import-lora", str(tmp_path / "lora"), str(tmp_path / "adapter"), "--k", "2"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "4 layers, LoRA rank 6 as rank 12" in result.output


KEY = f"base_model.model.{EXPERTS}"
Tensors = dict[str, Tensor]


def _without(tensors: Tensors, text: str) -> Tensors:
    return {key: value for key, value in tensors.items() if text not in key}


def _with(tensors: Tensors, key: str, value: Tensor) -> Tensors:
    return {**tensors, key: value}


BROKEN: dict[str, tuple[dict[str, Any], Callable[[Tensors], Tensors], str]] = {
    "no module in an entry": (
        {"target_parameters": ["down_proj"]},
        lambda tensors: tensors,
        r"must name modules too, as in experts\.down_proj, got 'down_proj'",
    ),
    "other names": (
        {"target_parameters": ["experts.one", "experts.two"]},
        lambda tensors: tensors,
        r"does not say which is which, got one, two of .* \(known are gate_up_proj, up_proj, down",
    ),
    "one entry too many": (
        {"target_parameters": [*BOTH, "experts.up_proj"]},
        lambda tensors: tensors,
        "got those of 2 of model.layers.0.mlp.experts for down_proj, gate_up_proj, up_proj",
    ),
    "no entries": (
        {"target_parameters": None},
        lambda tensors: tensors,
        "got those of 2 of model.layers.0.mlp.experts for none",
    ),
    "a wrapper is missing": (
        {},
        lambda tensors: _without(tensors, f"{EXPERTS}.base_layer"),
        f"got those of 1 of {EXPERTS} for down_proj, gate_up_proj",
    ),
    "a factor is missing": (
        {},
        lambda tensors: _without(tensors, f"{EXPERTS}.lora_B"),
        f"{EXPERTS}.down_proj must have lora_A and lora_B, got only lora_A",
    ),
    "another rank": (
        {"r": 5},
        lambda tensors: tensors,
        r"\[E\*5, N\] and \[M, 5\*E\] for the config's rank 5 and E experts, two or more, got \[24",
    ),
    "one expert": (
        {"r": 24},
        lambda tensors: tensors,
        "rank 24 and E experts, two or more, got",
    ),
    "three sizes": (
        {},
        lambda tensors: _with(tensors, f"{KEY}.lora_A.weight", torch.zeros(4, 6, 48)),
        r"two or more, got \[4, 6, 48\] and",
    ),
    "no outputs": (
        {},
        lambda tensors: _with(tensors, f"{KEY}.lora_B.weight", torch.zeros(0, 24)),
        r"two or more, got \[24, 48\] and \[0, 24\]",
    ),
    "integers": (
        {},
        lambda tensors: _with(tensors, f"{KEY}.lora_A.weight", torch.zeros(24, 48).int()),
        r"lora_A.weight must be floating, got torch.int32",
    ),
    "parameters the other way round": (
        {},
        lambda tensors: {
            key.replace(".base_layer", "")
            if ".base_layer" in key
            else key.replace("experts.", "experts.base_layer."): value
            for key, value in tensors.items()
        },
        r"lead from a width to an inner one and back, got 4 of 48 to 32, 4 of 32 to 96",
    ),
    "other numbers of experts": (
        {},
        lambda tensors: _with(
            _with(tensors, f"{KEY}.lora_A.weight", torch.zeros(30, 48)),
            f"{KEY}.lora_B.weight",
            torch.zeros(32, 30),
        ),
        r"and back, got 4 of 32 to 96, 5 of 48 to 32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_are_no_lora_of_experts_are_refused(case: str, tmp_path: Path) -> None:
    changes, broken, text = BROKEN[case]
    saved_by_peft(tmp_path / "lora")
    config = tmp_path / "lora" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    file = tmp_path / "lora" / "adapter_model.safetensors"
    save_file(broken(load_file(file)), file)
    with pytest.raises(ValueError, match=text):
        import_lora(tmp_path / "lora", tmp_path / "out", k=2)
    assert not (tmp_path / "out").exists()
