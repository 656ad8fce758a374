"""Whole models whose weights give a part to a PiSSA adapter."""

from __future__ import annotations

import copy

import pytest
import torch
from injection_models import llama, tokens

import gralora
from gralora import GraLoRAConfig
from gralora.nn import GraLoRALinear

PISSA = {"r": 8, "k": 2, "init_weights": "pissa"}


def _logits(model):
    with torch.no_grad():
        return model.eval()(tokens()).logits


def _train(model):
    """Give everything that trains other values."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def _weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def _same(model, before):
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)


@pytest.mark.parametrize("way", ["gaussian", "orthogonal"])
def test_ways_that_add_nothing_change_no_bit(way):
    model = llama()
    before = _logits(model)
    gralora.inject(model, GraLoRAConfig(r=8, init_weights=way))
    assert torch.equal(_logits(model), before)
    assert model.model.layers[0].self_attn.q_proj.adapters["default"].init_weights == way


@pytest.mark.parametrize("way", ["pissa", "pissa_niter_4"])
@pytest.mark.parametrize("hybrid_r", [0, 2], ids=["plain", "hybrid"])
def test_a_fresh_adapter_keeps_the_outputs(way, hybrid_r):
    model = llama()
    before = _logits(model)
    gralora.inject(model, GraLoRAConfig(**{**PISSA, "init_weights": way, "hybrid_r": hybrid_r}))
    torch.testing.assert_close(_logits(model), before, rtol=1e-4, atol=1e-6)


def test_every_target_gives_up_a_part():
    model = llama()
    norms = {name: p.norm().item() for name, p in model.named_parameters() if "_proj" in name}
    gralora.inject(model, GraLoRAConfig(**PISSA))
    assert len(norms) == 14
    for name, norm in norms.items():
        assert model.get_parameter(name).norm().item() < 0.95 * norm, name


def test_switched_off_the_model_is_the_base_model():
    model = llama()
    before = _logits(model)
    _train(gralora.inject(model, GraLoRAConfig(**PISSA)))
    assert (_logits(model) - before).abs().max() > 1e-2
    gralora.enable_adapters(model, False)
    torch.testing.assert_close(_logits(model), before, rtol=1e-4, atol=1e-6)


def test_another_adapter_starts_on_the_base_model():
    model = llama()
    before = _logits(model)
    _train(gralora.inject(model, GraLoRAConfig(**PISSA)))
    gralora.inject(model, GraLoRAConfig(r=4), "other")
    torch.testing.assert_close(_logits(model), before, rtol=1e-4, atol=1e-6)


def test_deleting_gives_the_base_model_back():
    model = llama()
    base = copy.deepcopy(model)
    _train(gralora.inject(model, GraLoRAConfig(**PISSA)))
    gralora.delete_adapter(model, "default")
    gralora.merge_and_unload(model)
    for name, value in base.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_merged_model_computes_what_the_adapted_one_did():
    model = _train(gralora.inject(llama(), GraLoRAConfig(**PISSA)))
    adapted = _logits(model)
    merged = gralora.merge_and_unload(model)
    assert type(merged.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    assert merged.state_dict().keys() == llama().state_dict().keys()
    torch.testing.assert_close(_logits(merged), adapted, rtol=1e-4, atol=1e-6)


def test_merging_another_puts_the_part_back_into_the_weights():
    model = _train(gralora.inject(llama(), GraLoRAConfig(**PISSA)))
    _train(gralora.inject(model, GraLoRAConfig(r=4, target_modules=["q_proj"]), "other"))
    adapted = _logits(model)
    merged = gralora.merge_and_unload(model)
    torch.testing.assert_close(_logits(merged), adapted, rtol=1e-4, atol=1e-6)


def test_it_trains():
    model = gralora.inject(llama(), GraLoRAConfig(**PISSA))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(5):
        loss = model(tokens(), labels=tokens()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    part = model.model.layers[0].self_attn.q_proj.principal_A["default"]
    assert part.grad is None


def test_a_target_that_shares_its_weight_is_refused_and_nothing_changes():
    model = llama(tie_word_embeddings=True)
    before = _weights(model)
    config = GraLoRAConfig(**{**PISSA, "r": 2, "target_modules": ["q_proj", "lm_head"]})
    with pytest.raises(RuntimeError, match=r"a PiSSA adapter must be its layer's alone, got lm_"):
        gralora.inject(model, config)
    assert _same(model, before)


def test_a_rank_beyond_one_layers_blocks_is_refused_by_name():
    model = llama()
    before = _weights(model)
    with pytest.raises(ValueError, match=r"inject: model.layers.1.mlp.up_proj: with init_weights"):
        gralora.inject(model, GraLoRAConfig(**PISSA, rank_pattern={"1.mlp.up_proj": 256}))
    assert _same(model, before)


def test_a_model_without_values_is_refused():
    with torch.device("meta"):
        model = llama()
    with pytest.raises(RuntimeError, match="needs a weight with values, got one on the meta"):
        gralora.inject(model, GraLoRAConfig(**PISSA))


def test_a_layer_that_runs_itself_is_refused():
    class Own(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    model = torch.nn.Sequential(Own(16, 16))
    text = r'the floating matrix of an nn.Linear or a Conv1D, got a .*Own \(accepted here: "kaim'
    with pytest.raises(TypeError, match=text):
        gralora.inject(model, GraLoRAConfig(**{**PISSA, "r": 2}))
    assert type(model[0]) is Own


def test_a_failure_while_parts_are_found_changes_nothing(monkeypatch):
    model = llama()
    before, calls, reset = _weights(model), [], GraLoRALinear.reset_adapter

    def fail(layer, name, **settings):
        calls.append(name)
        if len(calls) == 5:
            raise MemoryError("no memory")
        reset(layer, name, **settings)

    monkeypatch.setattr(GraLoRALinear, "reset_adapter", fail)
    with pytest.raises(MemoryError, match="no memory"):
        gralora.inject(model, GraLoRAConfig(**PISSA))
    assert _same(model, before)


def test_a_failure_while_parts_are_taken_out_puts_them_back(monkeypatch):
    model = llama()
    before, calls, take_out = _weights(model), [], GraLoRALinear.take_out

    def fail(layer, name):
        calls.append(name)
        if len(calls) == 5:
            raise MemoryError("no memory")
        take_out(layer, name)

    monkeypatch.setattr(GraLoRALinear, "take_out", fail)
    with pytest.raises(MemoryError, match="no memory"):
        gralora.inject(model, GraLoRAConfig(**PISSA))
    assert type(model.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    for key, value in before.items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-5, atol=1e-7)


def test_an_unknown_way_is_refused_by_the_configuration():
    with pytest.raises(ValueError, match=r'GraLoRAConfig: init_weights must be "kaiming", '):
        GraLoRAConfig(init_weights="olora")
