"""The work of a call grows with the number of layers, not with its square."""

from __future__ import annotations

import copy

import pytest
from injection_growth import grows_linearly
from torch import nn

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject
from gralora.injection.merging import merge_and_unload
from gralora.injection.plan import make_plan
from gralora.injection.switching import delete_adapter, set_adapter
from gralora.storage.adapter_files import load_adapter, save_adapter


def linear_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


SETTINGS = {
    "names": lambda names: {"target_modules": names[1:], "exclude_modules": names[:1]},
    "excluded-names": lambda names: {"exclude_modules": names[1::2]},
    "biases": lambda names: {"target_modules": ["up"], "bias": "all"},
    "saved-modules": lambda names: {"target_modules": ["up"], "modules_to_save": ["down"]},
    "saved-names": lambda names: {"target_modules": ["up"], "modules_to_save": names[::2]},
    "patterns": lambda names: {"rank_pattern": dict.fromkeys(names[::2], 8)},
    "patterns-of-nothing": lambda names: {"rank_pattern": {f"{name}s": 8 for name in names}},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_planning(settings):
    def prepare(model):
        config = GraLoRAConfig(r=4, **settings(linear_names(model)))
        return lambda: make_plan(model, config, "default")

    assert grows_linearly(prepare)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda model: inject(model, GraLoRAConfig(r=4), "second"), id="inject"),
        pytest.param(lambda model: set_adapter(model, "default"), id="set_adapter"),
        pytest.param(lambda model: delete_adapter(model, "default"), id="delete_adapter"),
        pytest.param(merge_and_unload, id="merge_and_unload"),
    ],
)
def test_injected_model(call):
    def prepare(model):
        inject(model, GraLoRAConfig(r=4, bias="all"))
        return lambda: call(model)

    assert grows_linearly(prepare)


STORED = {
    "plain": {},
    "ranks": {"rank_pattern": {".*up": 8}},
    "saved-modules": {"target_modules": ["up"], "modules_to_save": ["down"], "bias": "all"},
}


@pytest.mark.filterwarnings("ignore:save_adapter. PEFT cannot load")
@pytest.mark.parametrize("settings", STORED.values(), ids=STORED.keys())
def test_saving(settings, tmp_path):
    def prepare(model):
        inject(model, GraLoRAConfig(r=4, **settings))
        return lambda: save_adapter(model, tmp_path)

    assert grows_linearly(prepare)


@pytest.mark.filterwarnings("ignore:save_adapter. PEFT cannot load")
@pytest.mark.parametrize("settings", STORED.values(), ids=STORED.keys())
def test_loading(settings, tmp_path):
    def prepare(model):
        save_adapter(inject(copy.deepcopy(model), GraLoRAConfig(r=4, **settings)), tmp_path)
        return lambda: load_adapter(model, tmp_path)

    assert grows_linearly(prepare)
