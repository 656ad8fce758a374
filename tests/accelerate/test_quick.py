"""The short way to the operator: taken in the usual state alone, at once left when it ends."""

from __future__ import annotations

import sys

import pytest
import torch
from accelerate_changes import CHANGES, ON_A_PART, dropout_of, parts
from accelerate_models import (
    CONFIGS,
    accelerated_copy,
    assert_same_gradients,
    gradients,
    gralora,
    layer_of,
    lora,
    network,
    normal,
)
from torch import nn

from gralora.integrations.peft import accelerate, report
from gralora.integrations.peft.plan import plan
from gralora.nn import GraLoRALinear

USUAL = {
    "LoRA": (lora, {}),
    "LoRA with dropout": (lora, {"lora_dropout": 0.5}),
    "GraLoRA": (gralora, {"hybrid_r": 0}),
    "GraLoRA with dropout": (gralora, {"hybrid_r": 0, "gralora_dropout": 0.5}),
    "hybrid": (gralora, {}),
}


class Copied(nn.Module):
    """A module whose output may be added to in place, as PEFT's GraLoRA layer does."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).clone()


def run_both(ours, theirs):
    """Output and gradients agree."""
    found, expected = [], []
    for model, results in ((ours, found), (theirs, expected)):
        model.zero_grad()
        x = normal(3, 12).requires_grad_()
        y = model(x)
        if y.requires_grad:
            y.square().sum().backward()
        results += [y, x.grad]
    torch.testing.assert_close(found, expected)
    assert gradients(ours).keys() == gradients(theirs).keys()
    if gradients(theirs):
        assert_same_gradients(ours, theirs)


def is_quick(model):
    """Whether the layer takes the short way for a usual input."""
    layer = layer_of(model)
    return layer.quick(layer, normal(3, 12)) is not None


@pytest.fixture(params=["LoRA", "GraLoRA", "hybrid"])
def pair(request):
    """Two models with the same numbers that have run, ours accelerated."""
    config, options = USUAL[request.param]
    theirs = network(config, **options)
    ours = accelerated_copy(theirs)
    assert is_quick(ours)
    run_both(ours, theirs)
    return ours, theirs


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("usual", USUAL)
def test_arguments_are_those_of_the_plan(usual, dtype, bias, training):
    config, options = USUAL[usual]
    model = accelerate(network(config, nn.Linear(12, 8, bias=bias), dtype, **options))
    layer = layer_of(model.train(training))
    x = normal(3, 12, dtype=dtype)
    way, _, (factors,), base = plan(layer)
    assert way == "fused"
    found = layer.quick(layer, x)
    assert len(found) == 10
    for ours, expected in zip(found, (x, *base, *factors), strict=True):
        assert ours is expected or ours == expected


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_layer_that_changes_after_it_ran(pair, change):
    for model in pair:
        change(layer_of(model))
    run_both(*pair)
    (row,) = report(pair[0])
    assert row.way == "fused" or not is_quick(pair[0])


PARTS = {
    "LoRA": ("base layer", "lora_A", "lora_B", "lora_dropout"),
    "GraLoRA": ("base layer", "gralora_dropout"),
    "hybrid": ("base layer", "gralora_A_general", "gralora_B_general", "gralora_dropout"),
}


@pytest.mark.parametrize("change", ON_A_PART.values(), ids=ON_A_PART)
@pytest.mark.parametrize(
    ("pair", "part"),
    [(usual, part) for usual, names in PARTS.items() for part in names],
    indirect=["pair"],
)
def test_part_that_changes_after_the_layer_ran(pair, part, change):
    ours, theirs = map(layer_of, pair)
    for layer in (ours, theirs):
        change(parts(layer)[part])
    assert not is_quick(pair[0])
    theirs.base_layer = Copied(theirs.base_layer)
    run_both(*pair)


def test_removed_hook(pair):
    ours, _ = pair
    handle = layer_of(ours).base_layer.register_forward_hook(lambda *_: None)
    assert not is_quick(ours)
    handle.remove()
    assert is_quick(ours)


GLOBAL_HOOKS = {
    "forward hook": lambda hooks: hooks.register_module_forward_hook,
    "forward pre-hook": lambda hooks: hooks.register_module_forward_pre_hook,
    "backward hook": lambda hooks: hooks.register_module_full_backward_hook,
    "backward pre-hook": lambda hooks: hooks.register_module_full_backward_pre_hook,
}


@pytest.fixture
def seen(request):
    """Modules that a hook on all modules has seen, while a test runs."""
    found = []
    register = GLOBAL_HOOKS[request.param](torch.nn.modules.module)
    handle = register(lambda module, *_: found.append(module))
    yield found
    handle.remove()


@pytest.mark.parametrize("seen", GLOBAL_HOOKS, indirect=True)
def test_hook_on_all_modules_sees_what_peft_s_lora_calls(seen):
    theirs = network(lora, lora_dropout=0.5).train()
    ours = accelerated_copy(theirs)
    assert [(row.way, row.reason) for row in report(ours)] == [("peft", "all modules have hooks")]
    counts = []
    for model in (ours, theirs):
        seen.clear()
        model(normal(3, 12).requires_grad_()).sum().backward()
        counts.append(len(seen))
    assert counts[0] == counts[1] >= 5


@pytest.mark.parametrize("seen", GLOBAL_HOOKS, indirect=True)
@pytest.mark.parametrize("hybrid_r", [0, 2], ids=["GraLoRA", "hybrid"])
def test_hook_on_all_modules_sees_the_base_layer_of_gralora(hybrid_r, seen):
    model = accelerate(network(gralora, hybrid_r=hybrid_r))
    assert [row.way for row in report(model)] == ["beside"]
    model(normal(2, 3, 2, 12).requires_grad_()).sum().backward()
    assert layer_of(model).base_layer in seen


@pytest.mark.parametrize("register", GLOBAL_HOOKS.values(), ids=GLOBAL_HOOKS)
def test_hook_on_all_modules_that_is_removed(pair, register):
    ours, _ = pair
    handle = register(torch.nn.modules.module)(lambda *_: None)
    quick = is_quick(ours)
    handle.remove()
    assert not quick
    assert is_quick(ours)


@pytest.mark.parametrize("usual", ["LoRA with dropout", "GraLoRA with dropout"])
def test_changed_probability_of_dropout(usual):
    config, options = USUAL[usual]
    model = accelerate(network(config, **options)).train()
    x = normal(40, 12)
    kept = restoring_eval(model, x)
    assert not torch.allclose(model(x), kept)
    dropout_of(layer_of(model))["default"].p = 0.0
    torch.testing.assert_close(model(x), kept)
    dropout_of(layer_of(model))["default"].p = 1.0
    torch.testing.assert_close(model(x), layer_of(model).base_layer(x))


def restoring_eval(model, x):
    """Output without dropout, of a model that trains."""
    y = model.eval()(x)
    model.train()
    return y


@pytest.mark.parametrize("usual", ["LoRA with dropout", "GraLoRA with dropout"])
def test_dropout_that_alone_evaluates(usual):
    config, options = USUAL[usual]
    model = accelerate(network(config, **options)).train()
    x = normal(40, 12)
    expected = restoring_eval(model, x)
    dropout_of(layer_of(model)).eval()
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("kind", CONFIGS)
def test_switching_between_adapters(kind):
    theirs = network(CONFIGS[kind])
    torch.manual_seed(7)
    theirs.add_adapter("other", CONFIGS[kind](target_modules=["layer"]))
    ours = accelerated_copy(theirs)
    for names in ("default", "other", ["default", "other"], "default"):
        for model in (ours, theirs):
            model.base_model.set_adapter(names)
        assert is_quick(ours) == isinstance(names, str)
        run_both(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["fp64", "bf16"])
def test_model_moved_to_another_dtype(pair, dtype):
    ours, theirs = pair
    for model in pair:
        model.to(dtype)
    x = normal(3, 12, dtype=dtype)
    found = ours(x)
    assert found.dtype is dtype
    torch.testing.assert_close(found, theirs(x), rtol=0.03, atol=0.03)


TENSORS = [
    (usual, name)
    for usual, names in {
        "LoRA": ("lora_A.default.weight", "lora_B.default.weight"),
        "GraLoRA": ("gralora_A.default", "gralora_B.default"),
        "hybrid": ("gralora_A_general.default.weight", "gralora_B_general.default.weight"),
    }.items()
    for name in ("base_layer.weight", "base_layer.bias", *names)
]


@pytest.fixture
def module_and_key(pair, tensor):
    """The module that holds a tensor of our layer, and the tensor's key in it."""
    path, _, key = tensor.rpartition(".")
    return layer_of(pair[0]).get_submodule(path), key


def to_float8(module, key):
    module._parameters[key].data = module._parameters[key].data.to(torch.float8_e4m3fn)


def to_meta(module, key):
    module._parameters[key] = nn.Parameter(module._parameters[key].to("meta"))


def partition(module, key):
    module._parameters[key].ds_id = 3


def to_subclass(module, key):
    module._parameters[key].__class__ = type("Quantised", (nn.Parameter,), {})


def to_attribute(module, key):
    value = module._parameters.pop(key)
    module.__dict__[key] = value.detach()


ON_A_TENSOR = (to_float8, to_meta, partition, to_subclass, to_attribute)


@pytest.mark.parametrize("change", ON_A_TENSOR, ids=lambda change: change.__name__)
@pytest.mark.parametrize(("pair", "tensor"), TENSORS, indirect=["pair"])
def test_tensor_that_is_no_longer_usual(pair, module_and_key, change):
    change(*module_and_key)
    assert not is_quick(pair[0])


def test_dtype_that_no_operator_has(pair):
    layer = layer_of(pair[0])
    layer.base_layer.weight.data = layer.base_layer.weight.data.to(torch.float8_e4m3fn)
    assert layer.quick(layer, normal(3, 12, dtype=torch.float8_e4m3fn)) is None


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=str)
def test_variant_of_lora(options):
    assert not is_quick(accelerate(network(lora, **options)))


@pytest.mark.parametrize("kind", CONFIGS)
def test_adapter_that_the_layer_does_not_have(kind):
    model = accelerate(network(CONFIGS[kind]))
    layer_of(model)._active_adapter = ["elsewhere"]
    assert not is_quick(model)
    torch.testing.assert_close(model(normal(3, 12)), layer_of(model).base_layer(normal(3, 12)))


class Wrapped(torch.Tensor):
    """A tensor subclass, as quantisation and sharding have them."""


INPUTS = {
    "another dtype": normal(3, 12, dtype=torch.float64),
    "a subclass": normal(3, 12).as_subclass(Wrapped),
    "a parameter": nn.Parameter(normal(3, 12)),
}


@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
def test_input_that_is_not_usual(pair, x):
    layer = layer_of(pair[0])
    assert layer.quick(layer, x) is None


def test_transform_of_torch_func(pair):
    layer = layer_of(pair[0])
    seen = []

    def forward(x):
        seen.append(layer.quick(layer, x))
        return x

    torch.func.vmap(forward)(normal(3, 12))
    assert seen == [None]


def python_calls(layer, x):
    """Calls of Python functions in one forward pass."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event == "call"

    layer(x)
    sys.setprofile(profile)
    try:
        layer(x)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("usual", USUAL)
def test_python_does_as_little_as_for_a_native_layer(usual):
    config, options = USUAL[usual]
    native = GraLoRALinear(12, 8, r=4, k=2, hybrid_r=2, alpha=9)
    layer = layer_of(accelerate(network(config, **options)))
    x = normal(3, 12)
    assert python_calls(layer, x) <= python_calls(native, x)
