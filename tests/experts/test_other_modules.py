"""Fused experts of modules that compute in ways of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from expert_models import experts_of, fill, mixtral, routed
from torch import Tensor, nn
from torch.func import functional_call
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

import gralora
from gralora.nn import GraLoRAExperts


class Dense(nn.Module):
    """Every expert sees every token; weights are ``[experts, in, out]``."""

    is_transposed = True

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(3, 8, 12))
        self.outer = nn.Parameter(torch.randn(3, 12, 8))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.bmm(torch.bmm(x.expand(3, -1, -1), self.inner).relu(), self.outer).sum(0)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = Dense()

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(x)


def config(**settings: object) -> gralora.GraLoRAConfig:
    names = ["experts.inner", "experts.outer"]
    values = {"r": 4, "k": 2, "target_modules": (), "target_parameters": names} | settings
    return gralora.GraLoRAConfig(**values)


def delta(weights, expert: int) -> Tensor:
    spec = weights.adapters["default"]
    factors = weights.gralora_A["default"][expert], weights.gralora_B["default"][expert]
    return gralora.reference.delta_weight(*factors, scaling=spec.scaling)


def test_the_module_runs_itself_with_changed_weights():
    model = gralora.inject(Model(), config())
    fill(model)
    experts = model.experts
    x = torch.randn(5, 8)
    inner, outer = experts.inner, experts.outer
    assert (inner.in_features, inner.out_features) == (8, 12)
    want = torch.zeros(5, 8)
    for expert in range(3):
        hidden = x @ (inner.weight[expert] + delta(inner, expert).t())
        want = want + hidden.relu() @ (outer.weight[expert] + delta(outer, expert).t())
    before = experts.base_layer.calls
    got = model(x)
    assert experts.base_layer.calls == before + 1
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    trained = [p for p in model.parameters() if p.requires_grad]
    for one, other in zip(
        torch.autograd.grad(got.square().sum(), trained),
        torch.autograd.grad(want.square().sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_merging_transposed_experts():
    model = gralora.inject(Model(), config(hybrid_r=2))
    fill(model)
    x = torch.randn(5, 8)
    with torch.no_grad():
        want = model(x)
        before = model.experts.inner.weight.clone()
        model.experts.inner.merge()
        torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-4)
        model.experts.inner.unmerge()
        assert torch.equal(model.experts.inner.weight, before)


def test_dropout_is_refused():
    text = r"inject: dropout must be 0 for experts that run themselves, got 0.1 with experts.inner"
    with pytest.raises(ValueError, match=text):
        gralora.inject(Model(), config(dropout=0.1))


def test_hooks_of_the_experts_are_called():
    module = GraLoRAExperts(experts_of(mixtral()))
    for weights in module.weights.values():
        weights.add_adapter("default", r=8, k=2)
        weights.set_adapter("default")
    fill(module)
    index, shares = routed(4)
    x = torch.randn(len(index), 32)
    want = module(x, index, shares)
    seen: list[nn.Module] = []
    module.base_layer.register_forward_hook(lambda base, *_: seen.append(base))
    torch.testing.assert_close(module(x, index, shares), want, rtol=1e-4, atol=1e-5)
    assert seen == [module.base_layer]


def gpt_oss() -> nn.Module:
    """Transposed weights, biases, and gates between the values."""
    config = transformers.GptOssConfig(hidden_size=32, intermediate_size=24, num_local_experts=4)
    config._experts_implementation = "eager"
    return GptOssExperts(config)


def nemotron() -> nn.Module:
    """No gate: one product, the activation, another product."""
    config = transformers.NemotronHConfig(
        hidden_size=32, moe_intermediate_size=24, n_routed_experts=4
    )
    config._experts_implementation = "eager"
    return NemotronHExperts(config)


@pytest.mark.parametrize("build", [gpt_oss, nemotron], ids=["gpt-oss", "nemotron"])
def test_other_experts_of_transformers_take_the_grouped_pass(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
):
    base = build()
    for parameter in base.parameters():
        nn.init.normal_(parameter, std=0.2)
    module = GraLoRAExperts(base)
    for weights in module.weights.values():
        weights.add_adapter("default", r=8, k=2)
        weights.set_adapter("default")
    fill(module)
    index, shares = routed(4)
    x = torch.randn(len(index), 32)
    changed = {name: weights.added_to_weight() for name, weights in module.weights.items()}
    want = functional_call(base, changed, (x, index, shares))
    monkeypatch.setattr("gralora.nn.experts.module.functional_call", None)
    torch.testing.assert_close(module(x, index, shares), want, rtol=1e-4, atol=1e-5)
