"""Layers and weights that a model uses in several places."""

from __future__ import annotations

import pytest
import torch
from injection_models import Stack, adapted, llama, randomise, trainable
from torch import nn

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject
from gralora.injection.record import adapter_records


def shared_up():
    """Blocks 0 and 2 use the same linear layer."""
    model = Stack()
    model.body.blocks[2].up = model.body.blocks[0].up
    return model


def test_shared_layer_gets_one_adapter_under_every_name():
    model = inject(shared_up(), GraLoRAConfig(r=4))
    assert model.body.blocks[2].up is model.body.blocks[0].up
    assert adapted(model) >= {"body.blocks.0.up", "body.blocks.1.up"}
    assert "body.blocks.2.up" not in adapter_records(model)["default"].targets


@pytest.mark.parametrize("name", ["body.blocks.0.up", "body.blocks.2.up"])
def test_either_name_selects_a_shared_layer(name):
    model = inject(shared_up(), GraLoRAConfig(r=4, target_modules=[name]))
    assert list(adapter_records(model)["default"].targets) == ["body.blocks.0.up"]
    assert model.body.blocks[2].up is model.body.blocks[0].up


def test_shared_layer_excluded_under_one_name_is_left_alone():
    model = shared_up()
    inject(model, GraLoRAConfig(r=4, exclude_modules=["body.blocks.2.up"]))
    assert isinstance(model.body.blocks[0].up, nn.Linear)


def test_shared_block_is_adapted_once():
    model = Stack()
    model.body.blocks[2] = model.body.blocks[0]
    inject(model, GraLoRAConfig(r=4, target_modules=["up"]))
    assert model.body.blocks[2] is model.body.blocks[0]
    assert list(adapter_records(model)["default"].targets) == [
        "body.blocks.0.up",
        "body.blocks.1.up",
    ]


def test_layers_that_share_a_weight_get_an_adapter_each():
    model = Stack()
    model.body.blocks[1].up.weight = model.body.blocks[0].up.weight
    randomise(inject(model, GraLoRAConfig(r=4, target_modules=["up"])))
    first, second = (model.body.blocks[index].up for index in (0, 1))
    assert first.weight is second.weight
    model(torch.randn(5, 16)).sum().backward()
    assert not torch.equal(first.gralora_A["default"].grad, second.gralora_A["default"].grad)


def test_head_tied_to_the_embeddings_can_be_adapted(x):
    model = inject(llama(tie_word_embeddings=True), GraLoRAConfig(r=8, target_modules=["lm_head"]))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert trainable(model) == {"lm_head.gralora_A.default", "lm_head.gralora_B.default"}
    model(input_ids=x, labels=x).loss.backward()
    assert model.lm_head.gralora_B["default"].grad.abs().max() > 0


def test_module_that_holds_itself_is_walked_once():
    model = Stack()
    model.body.blocks[0].parent = model
    inject(model, GraLoRAConfig(r=4, target_modules=["up"]))
    assert len(adapter_records(model)["default"].targets) == 3
