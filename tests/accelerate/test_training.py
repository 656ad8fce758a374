"""Autocast, dropout, gradient checkpointing, data-parallel training and torch.compile."""

from __future__ import annotations

import pytest
import torch
from accelerate_models import (
    CONFIGS,
    accelerated_copy,
    assert_same_gradients,
    decoder,
    gradients,
    gralora,
    layer_of,
    network,
    normal,
    tokens,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gralora.integrations.peft import accelerate, restore


@pytest.fixture(params=CONFIGS)
def config(request):
    """LoRA and GraLoRA in turn."""
    return CONFIGS[request.param]


def loss(model):
    """Loss of a language model on its own input."""
    return model(input_ids=tokens(), labels=tokens()).loss


def test_autocast(config):
    theirs = network(config)
    ours = accelerated_copy(theirs)
    x = normal(5, 12)
    results = []
    for model in (ours, theirs):
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        y.float().square().sum().backward()
        results.append(y)
    found, expected = results
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.03, atol=0.03)
    assert_same_gradients(ours, theirs, rtol=0.05, atol=0.2)


def test_autocast_with_an_input_of_another_dtype(config):
    model = accelerate(network(config, dtype=torch.bfloat16))
    x = normal(5, 12)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x), model(x.bfloat16()))


def test_autocast_in_a_decoder(config):
    theirs = decoder("llama", config)
    ours = accelerated_copy(theirs)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = loss(ours), loss(theirs)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)


def test_dropout_acts_in_training_alone(config):
    name = "gralora_dropout" if config is gralora else "lora_dropout"
    model = accelerate(network(config, **{name: 0.5}))
    x = normal(40, 12)
    expected = restore(model).eval()(x)
    accelerate(model)
    torch.testing.assert_close(model(x), expected)
    assert not torch.allclose(model.train()(x), expected)


def test_dropout_keeps_the_mean(config):
    name = "gralora_dropout" if config is gralora else "lora_dropout"
    model = accelerate(network(config, **{name: 0.25}))
    x = normal(1, 12)
    expected = model.eval()(x)
    found = model.train()(x.expand(40000, 12)).mean(0, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_gradient_checkpointing(config, reentrant):
    plain = accelerate(decoder("llama", config)).train()
    model = accelerated_copy(plain)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    loss(plain).backward()
    loss(model).backward()
    assert_same_gradients(model, plain)


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)
def test_data_parallel_training(config, tmp_path):
    plain = accelerate(decoder("llama", config)).train()
    model = accelerated_copy(plain)
    rendezvous = (tmp_path / "rendezvous").as_uri()
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    try:
        network = DistributedDataParallel(model)
        for _ in range(2):
            network.zero_grad()
            loss(network).backward()
    finally:
        torch.distributed.destroy_process_group()
    loss(plain).backward()
    assert_same_gradients(model, plain)


def test_training_moves_the_adapters_alone(config):
    model = accelerate(decoder("llama", config))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    first = loss(model)
    for _ in range(5):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    assert loss(model) < first
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def fresh_compiler():
    """No compiled code from tests before, none left for those after."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("way", ["fused", "beside", "peft", "base"])
def test_compiled_layer_is_one_graph(config, way):
    model = accelerate(network(config))
    layer = layer_of(model)
    if way == "beside":
        layer.base_layer = nn.Sequential(layer.base_layer)
    elif way == "peft":
        dropout = layer.gralora_dropout if config is gralora else layer.lora_dropout
        dropout["default"] = nn.Sequential()
    elif way == "base":
        layer.enable_adapters(False)
    expected = accelerated_copy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (3, 5, 9):
        x = normal(rows, 12)
        torch.testing.assert_close(compiled(x), expected(x))
    if way != "base":
        compiled(x).sum().backward()
        expected(x).sum().backward()
        assert_same_gradients(model, expected)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
def test_token_counts_need_no_new_compilation(config, autocast):
    model = accelerate(network(config))
    compiled = torch.compile(model, backend="aot_eager", dynamic=True)
    expected = accelerated_copy(model)
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        for rows in (3, 5, 9):
            x = normal(rows, 12)
            torch.testing.assert_close(compiled(x), expected(x))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_decoder(config):
    model = accelerate(decoder("llama", config))
    plain = accelerated_copy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = compiled(input_ids=tokens(), labels=tokens()).loss
    expected = loss(plain)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    assert gradients(model).keys() == gradients(plain).keys()
    assert_same_gradients(model, plain)
