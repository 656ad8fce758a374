"""`layers_to_transform` beside a string: PEFT's GraLoRA ignores it, and accelerate says so."""

from __future__ import annotations

import warnings

import pytest
from accelerate_models import decoder, gralora, lora
from peft.tuners.gralora import GraloraLayer

from gralora.integrations.peft import accelerate

IGNORED = {
    "expression": {"target_modules": r".*\.q_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "full names": {"target_modules": [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]},
    "broken pattern": {"target_modules": r".*\.q_proj", "layers_pattern": "("},
}
HEEDED = {
    "endings": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "all that match": {"target_modules": r".*\.1\..*q_proj", "layers_to_transform": 1},
    "every layer": {"target_modules": r".*\.q_proj", "layers_to_transform": [0, 1]},
    "no layers": {"target_modules": r".*\.q_proj", "layers_to_transform": []},
    "not given": {"target_modules": r".*\.q_proj"},
}


@pytest.mark.parametrize("indices", [1, [1]], ids=["one number", "a list"])
@pytest.mark.parametrize("settings", IGNORED.values(), ids=IGNORED)
def test_layers_beyond_those_asked_for_are_named(settings, indices):
    model = decoder("llama", gralora, layers_to_transform=indices, **settings)
    message = r"has layers_to_transform=\[1\], yet \d+ layers beyond are adapted, such as model\.la"
    with pytest.warns(UserWarning, match=message):
        accelerate(model)


@pytest.mark.parametrize("settings", HEEDED.values(), ids=HEEDED)
def test_layers_that_were_asked_for_are_no_news(settings):
    model = decoder("llama", gralora, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accelerate(model)


def test_lora_is_left_to_peft_which_refuses():
    with pytest.raises(ValueError, match="cannot be used when `target_modules` is a str"):
        decoder("llama", lora, target_modules=r".*\.q_proj", layers_to_transform=[1])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_layers_stay_those_of_peft():
    model = decoder("llama", gralora, target_modules=r".*\.q_proj", layers_to_transform=[1])
    before = {name for name, module in model.named_modules() if isinstance(module, GraloraLayer)}
    accelerate(model)
    after = {name for name, module in model.named_modules() if isinstance(module, GraloraLayer)}
    assert after == before
    assert len(before) == 2


def test_an_adapter_added_later_is_named_by_the_next_call():
    model = accelerate(decoder("llama", gralora, target_modules=["q_proj"]))
    later = gralora(target_modules=r".*\.q_proj", layers_to_transform=[1])
    model.add_adapter("later", later)
    with pytest.warns(UserWarning, match="adapter 'later' has layers_to_transform"):
        accelerate(model)
