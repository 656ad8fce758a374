"""Which biases train, when, and that they are the model's own parameters."""

from __future__ import annotations

import warnings

import pytest
import torch
from injection_models import Stack, trainable
from peft import GraloraConfig, get_peft_model

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject
from gralora.injection.record import adapter_records
from gralora.injection.switching import delete_adapter, enable_adapters, set_adapter


def trained_biases(model):
    return {name for name in trainable(model) if name.endswith("bias")}


@pytest.mark.parametrize("bias", ["none", "all", "gralora_only"])
def test_biases_are_those_that_peft_trains(bias):
    settings = {"target_modules": ["up"], "bias": bias}
    peft_model = get_peft_model(Stack(), GraloraConfig(r=4, **settings)).get_base_model()
    expected = {name.replace(".base_layer", "") for name in trained_biases(peft_model)}
    model = inject(Stack(), GraLoRAConfig(r=4, **settings))
    assert trained_biases(model) == expected
    assert set(adapter_records(model)["default"].biases) == expected


def test_biases_of_saved_modules_train_as_copies_only():
    config = GraLoRAConfig(r=4, target_modules=["up"], bias="all", modules_to_save=["head"])
    model = inject(Stack(), config)
    assert "head.modules_to_save.default.bias" in trainable(model)
    assert not any(name.startswith("head") for name in adapter_records(model)["default"].biases)
    assert not model.head.original_module.bias.requires_grad


def test_biases_of_modules_that_another_adapter_saves_stay_frozen():
    model = inject(
        Stack(), GraLoRAConfig(r=4, target_modules=["up"], modules_to_save=["head"]), "a"
    )
    inject(model, GraLoRAConfig(r=4, target_modules=["up"], bias="all"), "b")
    assert not model.head.original_module.bias.requires_grad


def test_bias_that_two_layers_share_is_named_once():
    model = Stack()
    model.body.blocks[1].up.bias = model.body.blocks[0].up.bias
    inject(model, GraLoRAConfig(r=4, target_modules=["up"], bias="gralora_only"))
    names = adapter_records(model)["default"].biases
    assert names == ("body.blocks.0.up.bias", "body.blocks.2.up.bias")


def test_trained_bias_gets_a_gradient():
    model = inject(Stack(), GraLoRAConfig(r=4, target_modules=["up"], bias="gralora_only"))
    model(torch.randn(5, 16)).sum().backward()
    assert model.body.blocks[0].up.bias.grad.abs().max() > 0


def test_biases_train_only_while_their_adapter_is_active():
    config = GraLoRAConfig(r=4, target_modules=["up"], bias="gralora_only")
    model = inject(Stack(), config, "first")
    biases = trained_biases(model)
    inject(model, GraLoRAConfig(r=4, target_modules=["up"]), "second")
    assert trained_biases(model) == set()
    set_adapter(model, "first")
    assert trained_biases(model) == biases
    set_adapter(model, [])
    assert trained_biases(model) == set()


def test_biases_do_not_train_while_adapters_are_off():
    model = inject(Stack(), GraLoRAConfig(r=4, target_modules=["up"], bias="gralora_only"))
    biases = trained_biases(model)
    with pytest.warns(UserWarning, match="trained biases stay in the model"):
        enable_adapters(model, False)
    assert trained_biases(model) == set()
    enable_adapters(model, True)
    assert trained_biases(model) == biases


def test_switching_off_is_silent_without_biases():
    model = inject(Stack(), GraLoRAConfig(r=4, target_modules=["up"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enable_adapters(model, False)


def test_deleted_adapter_leaves_its_biases_frozen():
    model = inject(Stack(), GraLoRAConfig(r=4, target_modules=["up"], bias="gralora_only"))
    with torch.no_grad():
        model.body.blocks[0].up.bias.fill_(7)
    delete_adapter(model, "default")
    assert trained_biases(model) == set()
    assert model.body.blocks[0].up.bias.eq(7).all()


def test_warning_that_is_an_error_leaves_merged_adapters_merged():
    model = inject(Stack(), GraLoRAConfig(r=4, target_modules=["up"], bias="gralora_only"))
    layer = model.body.blocks[0].up
    layer.merge()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="trained biases stay in the model"):
            enable_adapters(model, False)
    assert layer.merged
    assert trained_biases(model)
