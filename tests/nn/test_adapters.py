"""Several named adapters on one layer: add, choose, delete, switch off."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gralora.nn import GraLoRALinear


@pytest.fixture
def layer(randomise):
    """A layer with the adapters "default" (active), "second" and "third"."""
    layer = GraLoRALinear(12, 8, r=4, k=2)
    layer.add_adapter("second", r=8, k=4)
    layer.add_adapter("third", r=4, k=2, hybrid_r=2)
    return randomise(layer)


def trainable(layer):
    """Names of the adapters whose factors require gradients."""
    return {name.split(".")[-1] for name, p in layer.named_parameters() if p.requires_grad}


def test_adapters_are_listed_in_order(layer):
    assert list(layer.adapters) == ["default", "second", "third"]


def test_added_adapter_is_not_active(layer):
    assert list(layer.active_adapters) == ["default"]


def test_added_adapter_is_not_trainable_before_it_is_chosen(layer):
    assert trainable(layer) == {"default"}


def test_added_adapter_starts_at_zero():
    layer = GraLoRALinear(12, 8, r=4, k=2)
    layer.add_adapter("second", r=4, k=2, hybrid_r=2)
    assert not layer.delta_weight("second").any()


def test_adding_leaves_the_other_adapters_alone(randomise):
    layer = randomise(GraLoRALinear(12, 8, r=4, k=2))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    layer.add_adapter("second", r=8, k=4)
    for key, value in before.items():
        assert torch.equal(layer.state_dict()[key], value), key


@pytest.mark.parametrize(
    "names", ["second", ["second"], ["second", "third"], ("third", "default")], ids=str
)
def test_set_adapter_activates(layer, names):
    layer.set_adapter(names)
    assert list(layer.active_adapters) == ([names] if isinstance(names, str) else list(names))


@pytest.mark.parametrize("names", ["second", ["second", "third"]], ids=str)
def test_set_adapter_decides_what_is_trainable(layer, names):
    layer.set_adapter(names)
    assert trainable(layer) == ({names} if isinstance(names, str) else set(names))


def test_set_adapter_keeps_the_base_frozen(layer):
    layer.set_adapter(["default", "third"])
    assert not layer.weight.requires_grad
    assert not layer.bias.requires_grad


def test_set_adapter_covers_the_hybrid_factors(layer):
    layer.set_adapter("third")
    assert layer.lora_A["third"].requires_grad
    assert layer.lora_B["third"].requires_grad
    layer.set_adapter("default")
    assert not layer.lora_A["third"].requires_grad


def test_delete_removes_every_factor(layer):
    layer.delete_adapter("third")
    assert not any("third" in key for key in layer.state_dict())
    assert list(layer.adapters) == ["default", "second"]


def test_delete_of_an_inactive_adapter_changes_no_output(layer):
    x = torch.randn(3, 12)
    before = layer(x)
    layer.delete_adapter("second")
    assert torch.equal(layer(x), before)
    assert list(layer.active_adapters) == ["default"]


def test_delete_of_one_of_two_active_adapters_keeps_the_other(layer):
    layer.set_adapter(["default", "second"])
    layer.delete_adapter("default")
    assert list(layer.active_adapters) == ["second"]


def test_delete_of_the_active_adapter_leaves_no_trace_of_it(layer):
    layer.delete_adapter("default")
    assert "default" not in layer.active_adapters


def test_delete_of_the_last_adapter_leaves_the_base():
    layer = GraLoRALinear(12, 8, r=4, k=2)
    layer.delete_adapter("default")
    x = torch.randn(3, 12)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert list(layer.active_adapters) == []


def test_name_is_free_again_after_delete(layer):
    layer.delete_adapter("second")
    layer.add_adapter("second", r=4, k=1)
    assert layer.gralora_A["second"].shape[0] == 1


def test_first_adapter_after_the_last_was_deleted_works(randomise, dense_update):
    layer = GraLoRALinear(12, 8, r=4, k=2, dtype=torch.float64)
    layer.delete_adapter("default")
    layer.add_adapter("again", r=4, k=2)
    layer.set_adapter("again")
    randomise(layer)
    x = torch.randn(3, 12, dtype=torch.float64)
    weight = layer.weight + dense_update(layer, "again", 2.0)
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias))


def test_switched_off_layer_is_the_base(layer):
    layer.set_adapter(["default", "second", "third"])
    layer.enable_adapters(False)
    x = torch.randn(3, 12)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_switched_on_layer_is_adapted_again(layer):
    x = torch.randn(3, 12)
    before = layer(x)
    layer.enable_adapters(False)
    layer.enable_adapters(True)
    assert torch.equal(layer(x), before)


def test_switching_off_keeps_the_active_adapters(layer):
    layer.set_adapter(["second", "third"])
    layer.enable_adapters(False)
    layer.enable_adapters(True)
    assert list(layer.active_adapters) == ["second", "third"]


def test_switched_off_layer_trains_nothing(layer):
    layer.enable_adapters(False)
    assert trainable(layer) == set()


def test_switched_on_layer_trains_the_active_adapters_again(layer):
    layer.set_adapter(["second", "third"])
    layer.enable_adapters(False)
    layer.enable_adapters(True)
    assert trainable(layer) == {"second", "third"}


def test_no_active_adapter_is_a_choice(layer):
    layer.set_adapter([])
    x = torch.randn(3, 12)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert trainable(layer) == set()


def test_order_of_the_active_adapters_is_kept(layer):
    layer.set_adapter(["third", "default"])
    assert list(layer.active_adapters) == ["third", "default"]


def test_switched_off_layer_still_gives_the_input_its_gradient(layer):
    layer.enable_adapters(False)
    x = torch.randn(3, 12, requires_grad=True)
    dy = torch.randn(3, 8)
    layer(x).backward(dy)
    torch.testing.assert_close(x.grad, dy @ layer.weight)


def test_extra_repr_names_every_adapter(layer):
    for name in layer.adapters:
        assert name in layer.extra_repr()


def test_state_dict_has_each_adapter_once(layer):
    assert set(layer.state_dict()) == {
        "weight",
        "bias",
        "gralora_A.default",
        "gralora_B.default",
        "gralora_A.second",
        "gralora_B.second",
        "gralora_A.third",
        "gralora_B.third",
        "lora_A.third",
        "lora_B.third",
    }
