"""Targets that are no plain linear layers: they run themselves, inside a wrapper."""

from __future__ import annotations

import pytest
import torch
from injection_models import Stack, randomise
from torch import nn

import gralora
from gralora import GraLoRAConfig, inject
from gralora.nn import GraLoRALinear, GraLoRAWrapper


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Table(nn.Module):
    """Of no known class, but with sizes and a forward."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.table = nn.Parameter(torch.randn(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x):
        return x @ self.table + self.bias


class Holder(Table):
    def __init__(self):
        super().__init__(8, 16)
        self.inner = nn.Linear(8, 16)


def stack(layer):
    model = Stack()
    model.body.blocks[1].up = layer
    return model


def x():
    return torch.randn(3, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("layer", "targets", "wrapped"),
    [
        pytest.param(Doubled(8, 16), "all-linear", True, id="subclass-all-linear"),
        pytest.param(Doubled(8, 16), ["up"], True, id="subclass-ending"),
        pytest.param(Table(8, 16), "all-linear", False, id="other-all-linear"),
        pytest.param(Table(8, 16), ["up"], True, id="other-ending"),
    ],
)
def test_selection_is_pefts(layer, targets, wrapped):
    model = inject(stack(layer), GraLoRAConfig(r=4, target_modules=targets))
    kinds = {name: type(m) for name, m in model.named_modules() if name.endswith(".up")}
    plain = {f"body.blocks.{i}.up": GraLoRALinear for i in (0, 2)}
    assert kinds == plain | {"body.blocks.1.up": GraLoRAWrapper if wrapped else type(layer)}


def test_second_adapter_finds_the_same_layers():
    model = inject(stack(Doubled(8, 16)), GraLoRAConfig(r=4))
    inject(model, GraLoRAConfig(r=8), "second")
    assert set(model.body.blocks[1].up.adapters) == {"default", "second"}


def test_outputs_are_those_of_the_base_and_the_update():
    model = stack(Table(8, 16))
    up = model.body.blocks[1].up
    expected = model(x())
    inject(model, GraLoRAConfig(r=4, target_modules=["blocks.1.up"]))
    assert torch.equal(model(x()), expected)
    randomise(model)
    update = model.body.blocks[1].up.delta_weight().detach()
    outputs = model(x())
    up.table.data.add_(update.T)
    with torch.no_grad():
        model.body.blocks[1].up.enable_adapters(False)
    torch.testing.assert_close(outputs, model(x()))


def test_trained_bias_is_saved_under_pefts_key(tmp_path):
    config = GraLoRAConfig(r=4, target_modules=["up"], bias="gralora_only")
    model = randomise(inject(stack(Doubled(8, 16)), config))
    nn.init.ones_(model.body.blocks[1].up.bias)
    state = gralora.adapter_state_dict(model)
    assert "base_model.model.body.blocks.1.up.base_layer.bias" in state
    gralora.save_adapter(model, tmp_path)
    again = stack(Doubled(8, 16))
    again.load_state_dict(stack(model.body.blocks[1].up.base_layer).state_dict())
    gralora.load_adapter(again, tmp_path)
    torch.testing.assert_close(again(x()), model(x()))


def test_saving_says_that_peft_cannot_adapt_the_layer(tmp_path):
    model = randomise(inject(stack(Table(8, 16)), GraLoRAConfig(r=4, target_modules=["up"])))
    with pytest.warns(UserWarning, match="since it adapts layers that are neither nn.Linear nor"):
        gralora.save_adapter(model, tmp_path)
    twin = gralora.load_adapter(stack(model.body.blocks[1].up.base_layer), tmp_path)
    assert torch.equal(twin(x()), model(x()))


def test_merging_a_model_with_an_unknown_forward_is_refused_and_changes_nothing():
    model = randomise(inject(stack(Doubled(8, 16)), GraLoRAConfig(r=4)))
    expected = model(x())
    with pytest.raises(RuntimeError, match=r"^merge_and_unload: body\.blocks\.1\.up: GraLoRAWrap"):
        gralora.merge_and_unload(model)
    assert torch.equal(model(x()), expected)


def test_hooks_of_a_wrapped_layer_stay():
    layer, calls = Doubled(8, 16), []
    layer.register_forward_hook(lambda *args: calls.append(args))
    inject(stack(layer), GraLoRAConfig(r=4))(x())
    assert len(calls) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["up", "inner"]},
        {"target_modules": ["up"], "modules_to_save": ["inner"]},
    ],
    ids=["target", "saved"],
)
def test_target_inside_a_target_is_refused(settings):
    with pytest.raises(ValueError, match=r"^inject: a target must not hold .*up with .*up\.inner"):
        inject(stack(Holder()), GraLoRAConfig(r=4, **settings))


def test_saved_module_tied_to_a_wrapped_layer_is_refused():
    model = inject(stack(Table(8, 16)), GraLoRAConfig(r=4, target_modules=["up"]))
    model.head.bias = None
    model.tied = nn.Module()
    model.tied.weight = model.body.blocks[1].up.base_layer.table
    with pytest.raises(ValueError, match="must not share a weight with"):
        inject(
            model,
            GraLoRAConfig(r=4, target_modules=["down"], modules_to_save=["tied"]),
            "second",
        )
