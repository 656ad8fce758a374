"""Something else instead of a model, named by every function that takes one."""

from __future__ import annotations

import pytest

import gralora

CALLS = {
    "set_adapter": lambda model: gralora.set_adapter(model, "default"),
    "enable_adapters": lambda model: gralora.enable_adapters(model, True),
    "delete_adapter": lambda model: gralora.delete_adapter(model, "default"),
    "merge_and_unload": gralora.merge_and_unload,
    "save_adapter": lambda model: gralora.save_adapter(model, "folder"),
    "load_adapter": lambda model: gralora.load_adapter(model, "folder"),
    "adapter_state_dict": gralora.adapter_state_dict,
    "load_adapter_state_dict": lambda model: gralora.load_adapter_state_dict(model, {}),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("model", ["name", None], ids=["str", "None"])
def test_no_module_is_refused(call, model):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got (str|NoneType)$"):
        call(model)


@pytest.mark.parametrize("function", ["save_adapter", "load_adapter"])
def test_directory_of_another_kind_is_refused(function, model):
    if function == "save_adapter":
        gralora.inject(model, gralora.GraLoRAConfig(r=8))
    text = rf"^{function}: directory must be a str or os\.PathLike, got a int$"
    with pytest.raises(TypeError, match=text):
        getattr(gralora, function)(model, 3)


def test_state_dict_of_another_kind_is_refused(model):
    gralora.inject(model, gralora.GraLoRAConfig(r=8))
    text = "^load_adapter_state_dict: state_dict must be a mapping of tensors, got a list$"
    with pytest.raises(TypeError, match=text):
        gralora.load_adapter_state_dict(model, [])
