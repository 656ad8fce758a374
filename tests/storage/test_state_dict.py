"""Adapters as state dicts: what is in them, and copying them back in place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from storage_models import assert_unchanged, llama, our_model, outputs, snapshot
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gralora.injection.inject import inject
from gralora.injection.switching import set_adapter
from gralora.nn import GraLoRALinear
from gralora.storage.state_dict import adapter_state_dict, load_adapter_state_dict

Q = "base_model.model.model.layers.0.self_attn.q_proj"
FULL = {"hybrid_r": 2, "bias": "all", "modules_to_save": ["lm_head"]}


def _base() -> nn.Module:
    return llama(attention_bias=True)


def _other(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's state dict with other values."""
    return {key: torch.randn_like(value) for key, value in adapter_state_dict(model).items()}


def test_the_tensors_are_those_of_the_model() -> None:
    model = our_model(_base(), **FULL)
    layer = model.model.layers[0].self_attn.q_proj
    state = adapter_state_dict(model)
    for suffix, tensor in (
        ("gralora_A", layer.gralora_A["default"]),
        ("gralora_B", layer.gralora_B["default"]),
        ("gralora_A_general.weight", layer.lora_A["default"]),
        ("gralora_B_general.weight", layer.lora_B["default"]),
        ("base_layer.bias", layer.bias),
    ):
        assert state[f"{Q}.{suffix}"].data_ptr() == tensor.data_ptr()
        assert not state[f"{Q}.{suffix}"].requires_grad
    copied = model.lm_head.modules_to_save["default"].weight
    assert state["base_model.model.lm_head.weight"].data_ptr() == copied.data_ptr()


def test_only_the_named_adapter_is_given() -> None:
    model = our_model(llama())
    expected = {key: value.clone() for key, value in adapter_state_dict(model).items()}
    from gralora.config import GraLoRAConfig

    inject(model, GraLoRAConfig(r=4, target_modules=["o_proj"]), "second")
    assert all(".o_proj." in key for key in adapter_state_dict(model, "second"))
    first = adapter_state_dict(model, "default")
    assert first.keys() == expected.keys()
    assert all(torch.equal(first[key], expected[key]) for key in expected)


@pytest.mark.parametrize("wrap", ["compiled", "data-parallel", "both"])
def test_wrappers_are_looked_through(wrap: str, one_process_group: None) -> None:
    model = our_model(_base(), **FULL)
    expected = adapter_state_dict(model)
    wrapped: nn.Module = model
    if wrap in ("data-parallel", "both"):
        wrapped = DistributedDataParallel(wrapped)
    if wrap in ("compiled", "both"):
        wrapped = torch.compile(wrapped)
    state = adapter_state_dict(wrapped)
    assert list(state) == list(expected)
    new = _other(model)
    load_adapter_state_dict(wrapped, new)
    assert all(torch.equal(adapter_state_dict(model)[key], new[key]) for key in new)


@pytest.mark.parametrize("settings", [{}, FULL], ids=["plain", "full"])
def test_loading_gives_the_outputs_of_the_source(settings: dict[str, Any]) -> None:
    source = our_model(_base(), **settings)
    target = our_model(_base(), **settings)
    load_adapter_state_dict(target, _other(target))
    assert not torch.equal(outputs(target), outputs(source))
    load_adapter_state_dict(target, adapter_state_dict(source))
    assert torch.equal(outputs(target), outputs(source))


def test_loading_keeps_every_parameter_and_its_memory() -> None:
    model = our_model(_base(), **FULL)
    before = {name: (id(p), p.data_ptr(), p.requires_grad) for name, p in model.named_parameters()}
    load_adapter_state_dict(model, _other(model))
    after = {name: (id(p), p.data_ptr(), p.requires_grad) for name, p in model.named_parameters()}
    assert after == before


def test_an_optimizer_goes_on_after_loading() -> None:
    model = our_model(llama())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    new = _other(model)
    load_adapter_state_dict(model, new)
    model(torch.arange(4)[None]).logits.square().sum().backward()
    layer = model.model.layers[0].self_attn.q_proj
    gradient = layer.gralora_B["default"].grad.clone()
    optimizer.step()
    expected = new[f"{Q}.gralora_B"] - gradient
    assert gradient.abs().max() > 0
    assert torch.equal(layer.gralora_B["default"].detach(), expected)


def test_loading_into_an_inactive_adapter_leaves_it_inactive() -> None:
    model = our_model(llama())
    from gralora.config import GraLoRAConfig

    inject(model, GraLoRAConfig(r=4, target_modules=["o_proj"]), "second")
    expected = outputs(model)
    load_adapter_state_dict(model, _other(model), "default")
    assert torch.equal(outputs(model), expected)
    set_adapter(model, "default")
    assert not torch.equal(outputs(model), expected)


def test_values_are_rounded_to_the_adapters_dtype() -> None:
    model = our_model(llama())
    new = {key: value.double() for key, value in _other(model).items()}
    load_adapter_state_dict(model, new)
    assert torch.equal(adapter_state_dict(model)[f"{Q}.gralora_A"], new[f"{Q}.gralora_A"].float())


def _without(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != f"{Q}.gralora_B"}


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "missing": (_without, ValueError, rf"got 1 missing \('{Q}.gralora_B'\)"),
    "unexpected": (
        lambda state: {**state, "more": torch.zeros(1)},
        ValueError,
        r"got 1 unexpected \('more'\)",
    ),
    "both": (
        lambda state: {**_without(state), "more": torch.zeros(1)},
        ValueError,
        "got 1 missing .* and 1 unexpected",
    ),
    "empty": (lambda state: {}, ValueError, r"got 8 missing \(.*, …\)"),
    "shape": (
        lambda state: {**state, f"{Q}.gralora_A": torch.zeros(2, 16, 4)},
        ValueError,
        rf"{Q}.gralora_A must have shape \(2, 16, 8\), got \(2, 16, 4\)",
    ),
    "integers": (
        lambda state: {**state, f"{Q}.gralora_A": torch.zeros(2, 16, 8, dtype=torch.int8)},
        TypeError,
        rf"{Q}.gralora_A must be floating .*, got torch.int8",
    ),
    "no tensor": (
        lambda state: {**state, f"{Q}.gralora_A": [1.0]},
        TypeError,
        rf"{Q}.gralora_A must be a tensor, got a list",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_state_dict_that_does_not_fit_changes_nothing(case: str) -> None:
    change, error, message = WRONG[case]
    model = our_model(_base(), hybrid_r=1, target_modules=["q_proj"])
    wrong = change(_other(model))
    before = snapshot(model)
    with pytest.raises(error, match=message):
        load_adapter_state_dict(model, wrong)
    assert_unchanged(model, before)


def test_two_values_for_tied_modules_are_refused() -> None:
    model = our_model(llama(tie_word_embeddings=True), modules_to_save=["lm_head"])
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"lm_head\.weight are one tensor|embed_tokens\.weight are"
    ):
        load_adapter_state_dict(model, _other(model))
    assert_unchanged(model, before)


def test_one_value_for_tied_modules_is_loaded() -> None:
    source = our_model(llama(tie_word_embeddings=True), modules_to_save=["lm_head"])
    target = copy.deepcopy(source)
    same = {key: value.clone() for key, value in adapter_state_dict(source).items()}
    with torch.no_grad():
        for parameter in target.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    load_adapter_state_dict(target, same)
    assert torch.equal(outputs(target), outputs(source))


FUNCTIONS = {
    "adapter_state_dict": adapter_state_dict,
    "load_adapter_state_dict": lambda model, name: load_adapter_state_dict(model, {}, name),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("injected", [True, False], ids=["injected", "bare"])
def test_an_unknown_name_is_refused(function: str, injected: bool) -> None:
    model = our_model(llama()) if injected else llama()
    present = "'default'" if injected else "none"
    with pytest.raises(ValueError, match=rf"no adapter is named 'x' \(present: {present}\)"):
        FUNCTIONS[function](model, "x")


def test_a_merged_adapter_is_given_and_not_overwritten() -> None:
    model = our_model(llama())
    expected = {key: value.clone() for key, value in adapter_state_dict(model).items()}
    for module in model.modules():
        if isinstance(module, GraLoRALinear):
            module.merge()
    state = adapter_state_dict(model)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    before = snapshot(model)
    with pytest.raises(
        RuntimeError, match=r"'default' is merged into the weight of model\.layers\.0"
    ):
        load_adapter_state_dict(model, expected)
    assert_unchanged(model, before)


def test_tensors_on_the_meta_device_are_refused() -> None:
    model = our_model(llama()).to("meta")
    with pytest.raises(RuntimeError, match="must have values, got a tensor on the meta device"):
        adapter_state_dict(model)


def test_partitioned_tensors_are_refused() -> None:
    model = our_model(llama())
    factor = model.model.layers[0].self_attn.q_proj.gralora_A["default"]
    factor.data = torch.empty(0)
    with pytest.raises(ValueError, match=r"must be whole, with shape \(2, 16, 8\), got \(0,\)"):
        adapter_state_dict(model)
