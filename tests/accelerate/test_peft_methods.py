"""Everything else that PEFT does with a model goes on working."""

from __future__ import annotations

import copy
import io

import peft
import pytest
import torch
from accelerate_models import (
    CONFIGS,
    TARGETS,
    accelerated_copy,
    decoder,
    gralora,
    layer_of,
    llama,
    lora,
    network,
    normal,
    tokens,
)
from torch import nn

from gralora.integrations.peft import accelerate, report, restore

CLASSES = {"lora": peft.tuners.lora.layer.Linear, "gralora": peft.tuners.gralora.layer.Linear}


@pytest.fixture(params=CONFIGS)
def config(request):
    """LoRA and GraLoRA in turn."""
    return CONFIGS[request.param]


@pytest.mark.parametrize("kind", CONFIGS)
def test_layer_is_an_instance_of_peft_s_class(kind):
    assert isinstance(layer_of(accelerate(network(CONFIGS[kind]))), CLASSES[kind])


def test_names_and_values_stay(config):
    theirs = network(config)
    before, printed = theirs.state_dict(), repr(theirs)
    ours = accelerate(theirs)
    assert ours is theirs
    assert repr(ours) == printed
    assert list(ours.state_dict()) == list(before)
    for name, value in ours.state_dict().items():
        assert value.data_ptr() == before[name].data_ptr()


def test_status_stays(config):
    theirs = network(config)
    before = theirs.get_layer_status(), theirs.get_model_status()
    accelerate(theirs)
    assert (theirs.get_layer_status(), theirs.get_model_status()) == before


def test_restore_gives_back_every_class(config):
    model = decoder("llama", config)
    classes = [type(module) for module in model.modules()]
    assert [type(module) for module in accelerate(model).modules()] != classes
    assert restore(model) is model
    assert [type(module) for module in model.modules()] == classes


def test_restore_of_a_model_not_accelerated(config):
    model = network(config)
    assert restore(model) is model
    assert [row.way for row in report(model)] == ["peft"]


def test_accelerating_twice_is_accelerating_once(config):
    model = accelerate(network(config))
    classes = [type(module) for module in model.modules()]
    assert [type(module) for module in accelerate(model).modules()] == classes


def test_deep_copy(config):
    model = accelerate(network(config))
    copied = copy.deepcopy(model)
    assert [row.way for row in report(copied)] == ["fused"]
    x = normal(3, 12)
    expected = model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(copied(x), expected)


def test_pickle(config):
    model = accelerate(network(config))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert [row.way for row in report(loaded)] == ["fused"]
    torch.testing.assert_close(loaded(normal(3, 12)), model(normal(3, 12)))


def test_saved_adapter_is_the_same_file(config, tmp_path):
    model = decoder("llama", config)
    model.save_pretrained(tmp_path / "before")
    accelerate(model).save_pretrained(tmp_path / "after")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_loaded_adapter(config, tmp_path):
    model = accelerate(decoder("llama", config))
    model.save_pretrained(tmp_path)
    loaded = accelerate(peft.PeftModel.from_pretrained(llama(), tmp_path))
    ids = tokens()
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_merge_and_unload(config):
    model = accelerate(decoder("llama", config))
    expected = model(input_ids=tokens()).logits
    merged = model.merge_and_unload()
    assert not len(report(merged))
    torch.testing.assert_close(merged(input_ids=tokens()).logits, expected)


def test_merge_and_unmerge(config):
    model = accelerate(network(config, dtype=torch.float64))
    x = normal(3, 12, dtype=torch.float64)
    expected = model(x)
    model.merge_adapter()
    torch.testing.assert_close(model(x), expected)
    assert not torch.allclose(layer_of(model).base_layer(x), layer_of(model).base_layer(0 * x))
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), expected)
    assert [row.way for row in report(model)] == ["fused"]


def test_disabled_adapters(config):
    model = accelerate(network(config))
    x = normal(3, 12)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), layer_of(model).base_layer(x))
    assert not torch.allclose(model(x), layer_of(model).base_layer(x))


def test_disabling_unmerges(config):
    model = accelerate(network(config))
    x = normal(3, 12)
    expected = layer_of(model).base_layer(x)
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(model(x), expected)


def test_unloading_gives_the_base_back(config):
    model = accelerate(network(config))
    x = normal(3, 12)
    expected = layer_of(model).base_layer(x)
    torch.testing.assert_close(model.unload()(x), expected)


def test_adapter_added_to_an_accelerated_layer(config):
    theirs = network(config)
    ours = accelerated_copy(theirs)
    for model in (ours, theirs):
        torch.manual_seed(5)
        model.add_adapter("second", config(target_modules=["layer"], r=2))
        model.set_adapter("second")
    assert [row.way for row in report(ours)] == ["fused"]
    torch.testing.assert_close(ours(normal(3, 12)), theirs(normal(3, 12)))


def test_layers_that_come_later_take_another_call(config):
    model = accelerate(decoder("llama", config, target_modules=["q_proj"]))
    model.add_adapter("second", config(target_modules=["k_proj"]))
    assert report(model).counts() == {"fused": 2, "peft": 2}
    model.set_adapter("second")
    assert set(report(accelerate(model)).counts()) == {"fused", "base"}


def test_deleted_adapter(config):
    model = accelerate(network(config))
    model.add_adapter("second", config(target_modules=["layer"]))
    model.set_adapter("second")
    model.delete_adapter("default")
    torch.testing.assert_close(model(normal(3, 12)), restore(copy.deepcopy(model))(normal(3, 12)))


def test_scaling_changed_afterwards():
    theirs = network(lora)
    ours = accelerated_copy(theirs)
    for model in (ours, theirs):
        layer_of(model).scale_layer(2.5)
    torch.testing.assert_close(ours(normal(3, 12)), theirs(normal(3, 12)))


def test_model_without_a_peft_model_around_it():
    model = llama()
    peft.inject_adapter_in_model(lora(target_modules=TARGETS["llama"]), model)
    theirs = copy.deepcopy(model)
    assert set(report(accelerate(model)).counts()) == {"fused"}
    ids = tokens()
    torch.testing.assert_close(model(input_ids=ids).logits, theirs(input_ids=ids).logits)


def test_hook_of_accelerate_around_a_layer():
    hooks = pytest.importorskip("accelerate.hooks", reason="accelerate is not installed")
    model = network(gralora)
    layer = layer_of(model)
    expected = model(normal(3, 12))
    hooks.add_hook_to_module(layer, hooks.ModelHook())
    accelerate(model)
    assert layer._old_forward.__func__ is type(layer).forward
    assert [row.way for row in report(model)] == ["fused"]
    torch.testing.assert_close(model(normal(3, 12)), expected)
    restore(model)
    assert layer._old_forward.__func__ is peft.tuners.gralora.layer.Linear.forward
    torch.testing.assert_close(model(normal(3, 12)), expected)


def test_restore_after_a_hook_was_taken_off():
    hooks = pytest.importorskip("accelerate.hooks", reason="accelerate is not installed")
    model = accelerate(network(gralora))
    expected = model(normal(3, 12))
    hooks.add_hook_to_module(layer_of(model), hooks.ModelHook())
    hooks.remove_hook_from_module(layer_of(model))
    torch.testing.assert_close(restore(model)(normal(3, 12)), expected)


@pytest.mark.parametrize("function", [accelerate, restore, report], ids=lambda f: f.__name__)
def test_what_is_no_module_is_refused(function):
    message = rf"{function.__name__}: model must be a torch.nn.Module.*, got builtins.dict"
    with pytest.raises(TypeError, match=message):
        function({})


def test_model_without_adapters_stays():
    model = nn.Linear(2, 2)
    assert accelerate(model) is model
    assert type(model) is nn.Linear
