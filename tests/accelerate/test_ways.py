"""Which way each layer takes, why, and that every way gives PEFT's output."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from accelerate_models import (
    CONFIGS,
    accelerated_copy,
    decoder,
    gralora,
    layer_of,
    lora,
    network,
    normal,
)
from torch import nn

from gralora.integrations.peft import accelerate, report


class Doubled(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Scaled(nn.Dropout):
    """Dropout with a forward of its own."""

    def forward(self, x):
        return 3 * x


def hook_base(layer):
    layer.base_layer.register_forward_hook(lambda module, args, output: output + 1)


def prehook_base(layer):
    layer.base_layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def backward_hook_base(layer):
    layer.base_layer.register_full_backward_hook(lambda *_: None)


def replace_base(layer):
    linear = layer.base_layer
    linear.forward = lambda x: nn.functional.linear(x, linear.weight) - 1


def parametrise_base(layer):
    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(layer.base_layer, "weight", Twice())


def hook_lora_a(layer):
    layer.lora_A["default"].register_forward_hook(lambda module, args, output: output + 1)


def replace_lora_b(layer):
    linear = layer.lora_B["default"]
    linear.forward = lambda x: nn.functional.linear(x, linear.weight) - 1


def other_lora_dropout(layer):
    layer.lora_dropout["default"] = Scaled()


def hooked_lora_dropout(layer):
    layer.lora_dropout["default"].register_forward_hook(lambda *_: None)


def hooked_gralora_dropout(layer):
    layer.gralora_dropout["default"].register_forward_hook(lambda *_: None)


def other_gralora_dropout(layer):
    layer.gralora_dropout["default"] = Scaled()


def hook_hybrid(layer):
    layer.gralora_B_general["default"].register_forward_hook(lambda m, a, output: output + 1)


def scale_by_tensor(layer):
    layer.scaling["default"] = torch.tensor(0.25)


def disable(layer):
    layer.enable_adapters(False)


def merge(layer):
    layer.merge()


def deactivate(layer):
    layer.set_adapter([])


CHANGES = [
    ("lora", hook_base, "beside", "base layer has forward hooks"),
    ("gralora", hook_base, "beside", "base layer has forward hooks"),
    ("lora", prehook_base, "beside", "base layer has forward hooks"),
    ("lora", backward_hook_base, "beside", "base layer has backward hooks"),
    ("gralora", replace_base, "beside", "base layer has a replaced forward"),
    ("lora", parametrise_base, "beside", "base layer is a ParametrizedLinear"),
    ("lora", hook_lora_a, "peft", "adapter default: lora_A has forward hooks"),
    ("lora", replace_lora_b, "peft", "adapter default: lora_B has a replaced forward"),
    ("lora", other_lora_dropout, "peft", "adapter default: dropout is a Scaled"),
    ("gralora", other_gralora_dropout, "peft", "adapter default: dropout is a Scaled"),
    ("lora", hooked_lora_dropout, "peft", "adapter default: dropout has forward hooks"),
    ("gralora", hooked_gralora_dropout, "peft", "adapter default: dropout has forward hooks"),
    ("gralora", hook_hybrid, "peft", "adapter default: gralora_B_general has forward hooks"),
    ("lora", scale_by_tensor, "peft", "adapter default: scaling is a tensor"),
    ("gralora", scale_by_tensor, "peft", "adapter default: scaling is a tensor"),
    ("lora", disable, "base", "adapters are disabled"),
    ("gralora", merge, "base", "adapters are merged into the weight"),
    ("lora", deactivate, "base", "no active adapter"),
]


@pytest.mark.parametrize(
    ("kind", "change", "way", "reason"),
    CHANGES,
    ids=[f"{kind}, {change.__name__}" for kind, change, *_ in CHANGES],
)
def test_changed_layer(kind, change, way, reason):
    theirs = network(CONFIGS[kind])
    ours = accelerated_copy(theirs)
    for model in (ours, theirs):
        change(layer_of(model))
    (row,) = report(ours)
    assert (row.way, row.reason) == (way, reason)
    x = normal(3, 12)
    torch.testing.assert_close(ours(x), theirs(x))


OPTIONS = {
    "DoRA": ({"use_dora": True}, "adapter default is a variant (DoraLinearVariant)"),
    "a bias of the adapter": ({"lora_bias": True}, "adapter default: lora_B has a bias"),
}


@pytest.mark.parametrize(("options", "reason"), OPTIONS.values(), ids=OPTIONS)
def test_variant_of_lora(options, reason):
    theirs = network(lora, **options)
    ours = accelerated_copy(theirs)
    (row,) = report(ours)
    assert (row.way, row.reason) == ("peft", reason)
    torch.testing.assert_close(ours(normal(3, 12)), theirs(normal(3, 12)))


@pytest.mark.parametrize("kind", CONFIGS)
def test_linear_subclass_is_called(kind):
    theirs = network(CONFIGS[kind], Doubled(12, 8))
    ours = accelerated_copy(theirs)
    (row,) = report(ours)
    assert (row.way, row.reason) == ("beside", "base layer is a Doubled")
    torch.testing.assert_close(ours(normal(3, 12)), theirs(normal(3, 12)))


def test_embeddings_and_convolutions_are_listed_and_left():
    model = nn.Sequential()
    model.add_module("embedding", nn.Embedding(9, 4))
    model.add_module("convolution", nn.Conv1d(4, 4, 1))
    model = peft.get_peft_model(model, lora(target_modules=["embedding", "convolution"]))
    classes = {name: type(module) for name, module in model.named_modules()}
    rows = {row.name.rpartition(".")[2]: row for row in report(accelerate(model))}
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert rows["embedding"].way == rows["convolution"].way == "peft"
    assert rows["embedding"].reason == "peft.tuners.lora.layer.Embedding is not accelerated"


def test_layer_of_another_method_is_left():
    model = network(peft.LoHaConfig)
    assert type(layer_of(accelerate(model))) is peft.tuners.loha.Linear
    (row,) = report(model)
    assert row.reason == "peft.tuners.loha.layer.Linear is not accelerated"


def test_layer_before_it_is_accelerated():
    (row,) = report(network(gralora))
    assert (row.way, row.reason) == ("peft", "not accelerated: call accelerate")


def test_forward_replaced_on_the_layer_itself():
    model = accelerate(network(lora))
    layer_of(model).forward = lambda x: x
    (row,) = report(model)
    assert (row.way, row.reason) == ("peft", "the layer's forward is replaced")


def test_adapters_on_the_meta_device_are_left_to_peft():
    model = accelerate(network(lora))
    layer_of(model).lora_A["default"].to("meta")
    (row,) = report(model)
    assert row.reason == "adapter default: lora_A.weight is on the device meta"


def test_partitioned_adapter_is_left_to_peft():
    model = accelerate(network(gralora))
    layer_of(model).gralora_A["default"].ds_id = 7
    (row,) = report(model)
    assert row.reason == "adapter default: gralora_A is partitioned by DeepSpeed"


def test_offloaded_base_is_called():
    hooks = pytest.importorskip("accelerate.hooks", reason="accelerate is not installed")
    theirs = network(lora)
    ours = accelerated_copy(theirs)
    base = layer_of(ours).base_layer
    hooks.add_hook_to_module(
        base, hooks.AlignDevicesHook("cpu", offload=True, weights_map=dict(base.state_dict()))
    )
    assert base.weight.is_meta
    assert [row.way for row in report(ours)] == ["beside"]
    torch.testing.assert_close(ours(normal(3, 12)), theirs(normal(3, 12)))


def test_wholly_offloaded_model_is_peft_s():
    offloading = pytest.importorskip("accelerate", reason="accelerate is not installed")
    theirs = decoder("llama", lora)
    ours = accelerated_copy(theirs)
    offloading.cpu_offload(ours, "cpu")
    assert {row.way for row in report(ours)} == {"peft"}
    ids = torch.ones(2, 3, dtype=torch.long)
    torch.testing.assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)


def test_torch_func_transform_of_lora():
    theirs = network(lora).requires_grad_(False)
    ours = accelerated_copy(theirs)
    x = normal(4, 12)
    torch.testing.assert_close(torch.func.vmap(ours)(x), torch.func.vmap(theirs)(x))


def test_input_of_another_dtype_is_refused_by_the_base_layer():
    model = accelerate(network(lora))
    with pytest.raises(RuntimeError, match="must have the same dtype"):
        model(normal(3, 12, dtype=torch.float64))


def test_counts():
    model = accelerate(decoder("llama", gralora))
    assert report(model).counts() == {"fused": len(report(model))}


def test_report_is_a_table():
    lines = str(report(accelerate(network(gralora)))).splitlines()
    assert lines[0] == "PEFT layers: 1 fused"
    assert any("base_model.model.layer" in line and "fused" in line for line in lines)


def test_report_of_nothing():
    assert str(report(nn.Linear(2, 2))).splitlines()[0] == "PEFT layers: none"


def test_report_goes_into_json():
    told = json.loads(json.dumps(report(accelerate(network(gralora))).as_dict()))
    assert told["counts"] == {"fused": 1}
    assert told["layers"][0]["name"] == "base_model.model.layer"
