"""Merging adapters of experts into the fused parameters, and taking them out bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from expert_models import FAMILIES, experts_of, injected, routed, tokens, wrapped

import gralora
from gralora.nn import GraLoRAExperts

EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
GRIDS = pytest.mark.parametrize("k", [1, 2, (4, 2)], ids=lambda k: f"k={k}")


@EACH_FAMILY
@DTYPES
@GRIDS
@pytest.mark.parametrize("hybrid_r", [0, 3])
def test_merge_adds_each_experts_own_difference(
    family: str, dtype: torch.dtype, k, hybrid_r: int, device: torch.device
):
    module = wrapped(family, r=8, k=k, hybrid_r=hybrid_r).to(device)
    module.base_layer.to(dtype)
    for weights in module.weights.values():
        before = weights.weight.detach().clone()
        spec = weights.adapters["default"]
        want = []
        for expert, matrix in enumerate(before):
            factors = [weights.gralora_A["default"][expert], weights.gralora_B["default"][expert]]
            plain = {}
            if hybrid_r:
                plain["lora_A"] = weights.lora_A["default"][expert].double()
                plain["lora_B"] = weights.lora_B["default"][expert].double()
            delta = gralora.reference.delta_weight(
                *(factor.double() for factor in factors), scaling=spec.scaling, **plain
            )
            want.append((matrix.double() + delta).to(dtype))
        weights.merge()
        tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(weights.weight.detach(), torch.stack(want).detach(), **tolerance)
        assert not torch.equal(weights.weight, before)
        weights.unmerge()
        assert torch.equal(weights.weight, before)


@EACH_FAMILY
def test_the_merged_module_computes_the_same(family: str):
    module = wrapped(family, r=8, k=2, hybrid_r=2)
    index, shares = routed(len(module.gate_up_proj.weight))
    x = torch.randn(len(index), 32)
    want = module(x, index, shares)
    module.gate_up_proj.merge()
    torch.testing.assert_close(module(x, index, shares), want, rtol=1e-4, atol=1e-5)
    module.down_proj.merge()
    torch.testing.assert_close(module(x, index, shares), want, rtol=1e-4, atol=1e-5)


@EACH_FAMILY
def test_merge_and_unload_gives_the_plain_model_back(family: str):
    model = injected(family)
    plain = FAMILIES[family]()
    ids = tokens()
    with torch.no_grad():
        want = model(ids).logits
        merged = gralora.merge_and_unload(model)
        assert merged is model
        assert not any(isinstance(module, GraLoRAExperts) for module in merged.modules())
        plain.load_state_dict(merged.state_dict(), strict=True)
        torch.testing.assert_close(plain(ids).logits, want, rtol=1e-4, atol=1e-5)


def test_a_state_dict_has_the_unmerged_base():
    module = wrapped("mixtral", r=8, k=2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.gate_up_proj.merge()
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_state_dict_without_the_base_is_refused():
    module = wrapped("mixtral", r=8, k=2)
    module.down_proj.merge(keep=False)
    with pytest.raises(RuntimeError, match=r"ExpertWeights.state_dict: \['default'\] are merged"):
        module.state_dict()


def test_nothing_is_loaded_into_merged_experts():
    module = wrapped("mixtral", r=8, k=2)
    values = copy.deepcopy(module.state_dict())
    values["base_layer.gate_up_proj"].zero_()
    module.down_proj.merge()
    with pytest.raises(RuntimeError, match=r"GraLoRAExperts.load_state_dict: \['default'\] are"):
        module.load_state_dict(values)
    assert module.gate_up_proj.weight.any()


def test_a_merge_that_would_overflow_changes_nothing():
    module = wrapped("mixtral", r=8, k=2)
    weights = module.gate_up_proj
    before = weights.weight.detach().clone()
    with torch.no_grad():
        weights.gralora_B["default"][2].fill_(float("inf"))
    with pytest.raises(ValueError, match="would put Inf or NaN into the weight"):
        weights.merge(safe_merge=True)
    assert torch.equal(weights.weight, before)


def test_shared_experts_are_not_merged():
    model = injected("mixtral")
    experts_of(model, 0).base_layer.gate_up_proj = experts_of(model, 1).base_layer.gate_up_proj
    before = experts_of(model, 1).gate_up_proj.weight.detach().clone()
    with pytest.raises(RuntimeError, match="must be its layer's alone, got "):
        gralora.merge_and_unload(model)
    assert torch.equal(experts_of(model, 1).gate_up_proj.weight, before)


def test_a_parameter_that_another_module_holds_is_not_merged():
    model = injected("mixtral")
    model.other = torch.nn.Module()
    model.other.weight = experts_of(model).base_layer.down_proj
    with pytest.raises(RuntimeError, match="must be its layer's alone, got"):
        gralora.merge_and_unload(model)


def test_delta_weight_trains():
    weights = wrapped("mixtral", r=8, k=2, hybrid_r=2).gate_up_proj
    delta = weights.delta_weight()
    assert delta.shape == weights.weight.shape
    delta.square().sum().backward()
    assert all(weights.lora_A["default"].grad.flatten(1).any(1))
