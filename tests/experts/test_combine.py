"""Weighted sums of adapters of fused experts, against sums of each expert's weight difference."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from expert_models import FAMILIES, injected, tokens
from safetensors.torch import load_file, save_file
from torch import Tensor

import gralora
from gralora.adapters import combine
from gralora.adapters.stored import StoredAdapter, read_with_experts
from gralora.adapters.write import write_adapter
from gralora.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:(save|write)_adapter. PEFT cannot load")
WEIGHTS = (0.7, -1.3)
GATE_UP, DOWN = (f"model.layers.0.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj"))
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "equal": ({}, {}),
    "other ranks, scales and a plain part": ({"r": 4, "alpha": 3}, {"hybrid_r": 3}),
    "a rectangle": ({"k": (2, 4)}, {"k": (2, 4), "r": 12, "use_rslora": True}),
    "layers of one alone": ({"target_modules": ["q_proj"]}, {"rank_pattern": {"down_proj": 16}}),
    "a parameter of one alone": ({"target_parameters": ["experts.down_proj"]}, {}),
}


def saved(folder: Path, *settings: dict[str, Any], family: str = "mixtral") -> list[Path]:
    """Filled adapters of one model."""
    paths = [folder / str(number) for number in range(len(settings))]
    for number, (path, each) in enumerate(zip(paths, settings, strict=True)):
        torch.manual_seed(number)
        gralora.save_adapter(injected(family, **each), path)
    return paths


def deltas(stored: StoredAdapter) -> dict[str, Tensor]:
    """By name, ΔW of a layer, or those of all experts."""
    found = {name: layer.delta(torch.float64) for name, layer in stored.layers.items()}
    for name, experts in stored.experts.items():
        found[name] = torch.stack([layer.delta(torch.float64) for layer in experts.layers])
    return found


def total(paths: Sequence[Path], weights: Sequence[float]) -> dict[str, Tensor]:
    """The sum by name."""
    found: dict[str, Tensor] = {}
    for path, weight in zip(paths, weights, strict=True):
        for name, delta in deltas(read_with_experts(path)).items():
            found[name] = found.get(name, 0) + weight * delta
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", PAIRS)
def test_ranks_side_by_side_are_the_exact_sum(case: str, family: str, tmp_path: Path) -> None:
    paths = saved(tmp_path, *PAIRS[case], family=family)
    result = combine(paths, tmp_path / "sum", weights=WEIGHTS)
    found, want = deltas(read_with_experts(tmp_path / "sum")), total(paths, WEIGHTS)
    assert found.keys() == want.keys() == result.specs.keys() == result.errors.keys()
    for name, delta in want.items():
        torch.testing.assert_close(found[name], delta, rtol=1e-5, atol=1e-6, msg=name)
    assert max(result.errors.values()) < 1e-6
    assert set(result.parameters) == {name for name in want if ".experts." in name}
    assert not result.peft_loads


@pytest.mark.parametrize("case", PAIRS)
def test_a_model_with_the_sum_has_the_summed_weights(case: str, tmp_path: Path) -> None:
    paths = saved(tmp_path, *PAIRS[case])
    combine(paths, tmp_path / "sum", weights=WEIGHTS)
    models = []
    for source in (None, tmp_path / "sum"):
        torch.manual_seed(5)
        model = FAMILIES["mixtral"]()
        models.append(model if source is None else gralora.load_adapter(model, source).eval())
    plain, loaded = models
    with torch.no_grad():
        for name, delta in total(paths, WEIGHTS).items():
            whole = name if ".experts." in name else f"{name}.weight"
            plain.get_parameter(whole).add_(delta)
        ids = tokens()
        torch.testing.assert_close(loaded(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_given_rank_is_the_best_for_each_expert(tmp_path: Path) -> None:
    paths = saved(tmp_path, {}, {"k": 1})
    result = combine(paths, tmp_path / "sum", rank=4, k=2)
    found, want = deltas(read_with_experts(tmp_path / "sum")), total(paths, (1, 1))
    for name, deltas_of_experts in want.items():
        lost = [
            torch.linalg.svdvals(block)[2:].square().sum()
            for delta in deltas_of_experts
            for rows in delta.chunk(2, 0)
            for block in rows.chunk(2, 1)
        ]
        best = float(sum(lost) ** 0.5 / deltas_of_experts.norm())
        error = float((found[name] - deltas_of_experts).norm() / deltas_of_experts.norm())
        assert best > 0.1
        assert error == pytest.approx(best, rel=1e-5)
        assert result.errors[name] == pytest.approx(best, rel=1e-5)
        assert result.specs[name].r == 4


def test_peft_computes_the_same_with_the_exported_sum(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    paths = saved(tmp_path, *PAIRS["a parameter of one alone"])
    combine(paths, tmp_path / "sum", weights=WEIGHTS)
    gralora.export_lora(tmp_path / "sum", tmp_path / "lora")
    models = []
    for load, folder in ((gralora.load_adapter, "sum"), (peft.PeftModel.from_pretrained, "lora")):
        torch.manual_seed(5)
        models.append(load(FAMILIES["mixtral"](), tmp_path / folder).eval())
    ids = tokens()
    with torch.no_grad():
        want, got = (model(ids).logits for model in models)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_ranks_of_layers_beside_experts_are_not_filled_up(tmp_path: Path) -> None:
    paths = saved(tmp_path, *PAIRS["layers of one alone"])
    result = combine(paths, tmp_path / "sum")
    assert result.specs[GATE_UP].r == 16
    assert result.specs["model.layers.0.self_attn.q_proj"].r == 8


def test_16_bits_become_float32_for_all_experts_where_one_needs_it(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, {})
    file = path / "adapter_model.safetensors"
    tensors = {key: value.half() for key, value in load_file(file).items()}
    key = f"base_model.model.{DOWN}.gralora_B"
    # Halves of these fit 16 bits, but for those of the last expert.
    tensors[key] = torch.ones_like(tensors[key])
    tensors[key][-1] = 1 + 2**-10
    save_file(tensors, file)
    combine([path], tmp_path / "sum", weights=[1.5])
    stored = read_with_experts(tmp_path / "sum").experts[DOWN]
    assert stored.B.dtype == torch.float32
    assert stored.A.dtype == torch.float16
    factor = 1.5 * float(tensors[key].max())
    assert stored.B.max().item() * stored.spec.scaling == pytest.approx(2 * factor)


def test_other_numbers_of_experts_are_refused(tmp_path: Path) -> None:
    paths = saved(tmp_path, {}, {})
    stored = read_with_experts(paths[1])
    fewer = {
        name: type(experts)(experts.spec, experts.A[:3], experts.B[:3])
        for name, experts in stored.experts.items()
    }
    write_adapter(tmp_path / "fewer", {}, experts=fewer)
    with pytest.raises(ValueError, match=rf"one base model, got {GATE_UP} of 4 and 3 experts"):
        combine([paths[0], tmp_path / "fewer"], tmp_path / "sum")


def test_a_name_of_a_layer_and_of_a_parameter_is_refused(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, {})
    layer = read_with_experts(path).experts[DOWN].layers[0]
    write_adapter(tmp_path / "layer", {DOWN: layer})
    with pytest.raises(ValueError, match=rf"got {DOWN} as a layer and as fused experts"):
        combine([path, tmp_path / "layer"], tmp_path / "sum")
    with pytest.raises(ValueError, match=rf"of a layer or of a parameter, got {DOWN}"):
        write_adapter(tmp_path / "out", {DOWN: layer}, experts=read_with_experts(path).experts)


def parameters_of(path: Path) -> list[str]:
    return list(read_with_experts(path).experts)


def test_parameters_keep_the_order_of_their_module(tmp_path: Path) -> None:
    down, both = saved(tmp_path, *PAIRS["a parameter of one alone"])
    assert parameters_of(down)[0] == DOWN
    combine([down, both], tmp_path / "sum")
    assert parameters_of(tmp_path / "sum") == parameters_of(both)


def test_parameters_whose_order_no_adapter_tells_are_refused(tmp_path: Path) -> None:
    halves = [{"target_parameters": [f"experts.{name}_proj"]} for name in ("gate_up", "down")]
    paths = saved(tmp_path, *halves)
    text = rf"order in the module is not known otherwise, got {DOWN}, {GATE_UP} in different ones"
    with pytest.raises(ValueError, match=text):
        combine(paths, tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def test_orders_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, {})
    experts = read_with_experts(path).experts
    write_adapter(tmp_path / "turned", {}, experts=dict(reversed(experts.items())))
    with pytest.raises(ValueError, match=r"parameters of model.layers.\d.mlp.experts in one order"):
        combine([path, tmp_path / "turned"], tmp_path / "sum")


def test_the_command_says_what_peft_gets(tmp_path: Path) -> None:
    paths = saved(tmp_path, {}, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(main, ["combine", *map(str, paths), str(tmp_path / "sum")])
    assert result.exit_code == 0, result.output
    assert "PEFT's GraLoRA has no fused experts; gralora export-lora writes" in result.stderr
    assert "4 layers, largest relative error" in result.stdout
