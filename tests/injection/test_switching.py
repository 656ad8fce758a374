"""set_adapter, enable_adapters and delete_adapter of a whole model."""

from __future__ import annotations

import pytest
import torch
from injection_models import Stack, adapted, randomise, trainable
from torch import nn

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject
from gralora.injection.record import adapter_records
from gralora.injection.switching import delete_adapter, enable_adapters, set_adapter
from gralora.nn import GraLoRALinear


@pytest.fixture
def z():
    return torch.randn(5, 16)


@pytest.fixture
def both():
    """ "first" on every up and head, "second" on every down and head."""
    model = inject(Stack(), GraLoRAConfig(r=4, target_modules=["up", "head"]), "first")
    return randomise(inject(model, GraLoRAConfig(r=4, target_modules=["down", "head"]), "second"))


def alone(name):
    """A model with one of the two adapters, with the same factors as in the fixture."""
    part = {"first": ["up", "head"], "second": ["down", "head"]}[name]
    return inject(Stack(), GraLoRAConfig(r=4, target_modules=part), name)


@pytest.mark.parametrize("name", ["first", "second"])
def test_one_adapter_acts_as_if_it_were_alone(both, name, z):
    single = alone(name)
    result = single.load_state_dict(both.state_dict(), strict=False)
    assert not result.missing_keys
    set_adapter(both, name)
    assert torch.equal(both(z), single(z))
    assert trainable(both) == trainable(single)


def test_two_adapters_act_together(both):
    set_adapter(both, ["first", "second"])
    assert both.head.active_adapters == ["first", "second"]
    assert both.body.blocks[0].up.active_adapters == ["first"]
    assert {name.rpartition(".")[2] for name in trainable(both)} == {"first", "second"}


def test_no_adapter_gives_the_base_model(both, z):
    set_adapter(both, [])
    assert torch.equal(both(z), Stack()(z))
    assert trainable(both) == set()


def test_off_gives_the_base_model_and_on_what_was_active(both, z):
    before, trained = both(z), trainable(both)
    enable_adapters(both, False)
    assert torch.equal(both(z), Stack()(z))
    assert trainable(both) == set()
    enable_adapters(both, True)
    assert torch.equal(both(z), before)
    assert trainable(both) == trained


def test_set_while_off_takes_effect_when_on(both):
    enable_adapters(both, False)
    set_adapter(both, "first")
    assert trainable(both) == set()
    enable_adapters(both, True)
    assert all(name.endswith(".first") for name in trainable(both))


def test_new_adapter_switches_adapters_on(both):
    enable_adapters(both, False)
    inject(both, GraLoRAConfig(r=4, target_modules=["up"]), "third")
    assert all(name.endswith(".third") for name in trainable(both))
    assert trainable(both)


@pytest.mark.parametrize(
    "switch",
    [
        pytest.param(lambda model: set_adapter(model, "first"), id="set"),
        pytest.param(lambda model: enable_adapters(model, False), id="off"),
        pytest.param(lambda model: delete_adapter(model, "first"), id="delete"),
    ],
)
def test_mode_and_other_parameters_are_left_alone(both, switch):
    both.eval()
    both.head.train()
    both.norm.weight.requires_grad_(True)
    switch(both)
    assert both.norm.weight.requires_grad
    assert both.head.training
    assert not both.body.blocks[0].up.training


def test_deleted_adapter_is_gone(both, z):
    single = alone("second")
    single.load_state_dict(both.state_dict(), strict=False)
    delete_adapter(both, "first")
    assert adapter_records(both).keys() == {"second"}
    assert not any("first" in name for name, _ in both.named_parameters())
    assert torch.equal(both(z), single(z))


def test_active_adapter_that_is_deleted_has_no_successor(both, z):
    delete_adapter(both, "second")
    assert torch.equal(both(z), Stack()(z))
    assert trainable(both) == set()


def test_deleted_name_can_be_used_again(both):
    delete_adapter(both, "first")
    inject(both, GraLoRAConfig(r=2, target_modules=["up"]), "first")
    assert both.body.blocks[0].up.adapters["first"].r == 2


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["parallel", "compile"])
def test_wrapped_models_are_switched(both, wrap):
    wrapped = wrap(both)
    set_adapter(wrapped, "first")
    assert both.head.active_adapters == ["first"]
    enable_adapters(wrapped, False)
    assert trainable(both) == set()
    delete_adapter(wrapped, "first")
    assert adapter_records(both).keys() == {"second"}


def test_layers_of_the_users_own_are_switched():
    model = Stack()
    model.head = GraLoRALinear.from_linear(model.head, r=4)
    inject(model, GraLoRAConfig(r=4, target_modules=["up"]), "second")
    set_adapter(model, "default")
    assert adapted(model) == {"head", *(f"body.blocks.{index}.up" for index in range(3))}
    assert trainable(model) == {"head.gralora_A.default", "head.gralora_B.default"}


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        pytest.param(
            lambda m: set_adapter(m, "third"),
            ValueError,
            r"^set_adapter: no adapter is named 'third' \(present: 'first', 'second'\)",
            id="unknown",
        ),
        pytest.param(
            lambda m: set_adapter(m, ["first", "third"]), ValueError, "'third'", id="one-unknown"
        ),
        pytest.param(
            lambda m: set_adapter(m, ["first", "first"]), ValueError, "must appear once", id="twice"
        ),
        pytest.param(lambda m: set_adapter(m, 3), TypeError, "got 3", id="number"),
        pytest.param(lambda m: set_adapter(m, None), TypeError, "got None", id="none"),
        pytest.param(
            lambda m: delete_adapter(m, "third"),
            ValueError,
            "^delete_adapter: no adapter is named 'third'",
            id="delete-unknown",
        ),
    ],
)
def test_wrong_names_change_nothing(both, call, error, text):
    before = trainable(both)
    with pytest.raises(error, match=text):
        call(both)
    assert trainable(both) == before
    assert adapter_records(both).keys() == {"first", "second"}


def test_model_without_adapters_has_no_names():
    with pytest.raises(ValueError, match=r"no adapter is named 'x' \(present: none\)"):
        set_adapter(Stack(), "x")


def test_set_unmerges_with_a_warning(both):
    weight = both.head.weight.clone()
    both.head.merge()
    with pytest.warns(UserWarning, match="^set_adapter: merged adapters are unmerged first"):
        set_adapter(both, "first")
    assert torch.equal(both.head.weight, weight)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda m: set_adapter(m, "first"), id="set_adapter"),
        pytest.param(lambda m: enable_adapters(m, False), id="enable_adapters"),
    ],
)
def test_merge_that_kept_nothing_is_no_way_back(both, call, request):
    both.body.blocks[0].down.merge()
    both.head.merge(keep=False)
    with pytest.raises(RuntimeError, match=f"^{request.node.callspec.id}: .*keep=False"):
        call(both)
    assert both.body.blocks[0].down.merged
    assert both.head.active_adapters == ["second"]


def test_merged_adapter_is_not_deleted(both):
    both.head.merge()
    text = r"^delete_adapter: .* got 'second', merged in head \(unmerge\(\) first\)"
    with pytest.raises(RuntimeError, match=text):
        delete_adapter(both, "second")
    assert "second" in both.body.blocks[0].down.adapters
