"""Gradient checkpointing that is switched on after injection gives the same gradients."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from injection_models import llama, randomise, tokens
from torch import nn
from torch.utils.checkpoint import checkpoint

from gralora.config import GraLoRAConfig
from gralora.injection.checkpointing import RequireGradWhileCheckpointing
from gralora.injection.inject import inject
from gralora.nn import GraLoRALinear

CONFIG = GraLoRAConfig(r=8)


class Blocks(nn.Module):
    """A frozen model that checkpoints as transformers' models do, without their help."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(64, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(2))
        self.gradient_checkpointing = False

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, x):
        hidden = self.embeddings(x)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                hidden = checkpoint(block, hidden, use_reentrant=True)
            else:
                hidden = block(hidden)
        return hidden


@pytest.fixture
def blocks():
    return randomise(inject(Blocks(), GraLoRAConfig(r=4)))


def switch_on(model, reentrant):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})


def gradients(model, x):
    model.zero_grad()
    output = model(x)
    (output if isinstance(output, torch.Tensor) else output.logits).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name] is not None, name
        torch.testing.assert_close(actual[name], value)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
def test_language_model_has_the_gradients_of_one_without_checkpointing(model, x, reentrant):
    randomise(inject(model, CONFIG))
    expected = gradients(model, x)
    switch_on(model, reentrant)
    assert_equal(gradients(model, x), expected)


def test_model_with_trained_embeddings_too(x):
    config = GraLoRAConfig(r=8, modules_to_save=["embed_tokens"])
    model = randomise(inject(llama(), config))
    expected = gradients(model, x)
    switch_on(model, True)
    assert_equal(gradients(model, x), expected)


def test_any_model_with_the_flag_and_embeddings(blocks, x):
    expected = gradients(blocks, x)
    blocks.gradient_checkpointing = True
    assert_equal(gradients(blocks, x), expected)


def test_model_inside_another(x):
    outer = nn.Sequential(Blocks())
    randomise(inject(outer, GraLoRAConfig(r=4)))
    expected = gradients(outer, x)
    outer[0].gradient_checkpointing = True
    assert_equal(gradients(outer, x), expected)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_copies_look_at_their_own_flag(blocks, x, copied):
    expected = gradients(blocks, x)
    other = copied(blocks)
    other.gradient_checkpointing = True
    assert not blocks.embeddings(x).requires_grad
    assert_equal(gradients(other, x), expected)


def test_second_adapter_registers_no_second_hook(blocks, x):
    inject(blocks, GraLoRAConfig(r=4), "second")
    hooks = list(blocks.embeddings._forward_hooks.values())
    assert [type(hook) for hook in hooks] == [RequireGradWhileCheckpointing]


def test_embeddings_that_a_second_adapter_saves(blocks, x):
    config = GraLoRAConfig(r=4, modules_to_save=["embeddings"])
    randomise(inject(blocks, config, "second"))
    copied = blocks.embeddings.modules_to_save["second"]
    assert not any(isinstance(module, GraLoRALinear) for module in copied.modules())
    assert not copied._forward_hooks
    expected = gradients(blocks, x)
    blocks.gradient_checkpointing = True
    assert_equal(gradients(blocks, x), expected)


@pytest.mark.parametrize(
    ("checkpointing", "training"),
    [pytest.param(False, True, id="off"), pytest.param(True, False, id="evaluation")],
)
def test_embeddings_stay_frozen_otherwise(blocks, x, checkpointing, training):
    blocks.gradient_checkpointing = checkpointing
    blocks.train(training)
    assert not blocks.embeddings(x).requires_grad


def test_embeddings_stay_frozen_without_gradients(blocks, x):
    blocks.gradient_checkpointing = True
    with torch.no_grad():
        assert not blocks.embeddings(x).requires_grad
    with torch.inference_mode():
        assert not blocks.embeddings(x).requires_grad


def test_model_without_embeddings_needs_none():
    model = nn.Sequential(nn.Linear(8, 8))
    model.gradient_checkpointing = False
    inject(model, GraLoRAConfig(r=4))
    assert not any(module._forward_hooks for module in model.modules())


def test_generation_of_tokens_is_unchanged(model, x):
    inject(model, CONFIG)
    switch_on(model, True)
    model.eval()
    assert model.generate(tokens(), max_new_tokens=2, do_sample=False).shape == (2, 9)
