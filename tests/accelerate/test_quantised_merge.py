"""Accelerated GraLoRA merged into quantised bases: dequantised, added to, quantised again."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from accelerate_models import gralora, layer_of, network, normal
from peft import get_peft_model
from quantised_bases import IN, OUT, QUANTISED, dense, four_bit, int4
from torch import nn

from gralora.integrations.peft import accelerate, restore

# What quantising again costs at most, of the Frobenius norm: NF4 has 16 values, int8 254.
LARGEST = {"bitsandbytes-4-bit": 0.2, "bitsandbytes-8-bit": 0.02, "torchao-int8": 0.02}


@pytest.fixture(params=QUANTISED)
def kind(request):
    """Each kind of quantised base in turn."""
    return request.param


@pytest.fixture
def model(kind):
    """An accelerated network over a quantised layer, evaluating."""
    return accelerate(network(gralora, QUANTISED[kind]())).eval()


@pytest.fixture
def exact(model):
    """Base weight and update before any merge, in float64."""
    layer = layer_of(model)
    return dense(layer.base_layer) + layer.get_delta_weight("default").detach().double()


def merge_silently(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.merge_adapter(**options)


def off(found, exact):
    return float((found - exact).norm() / exact.norm())


def test_merge_is_near_the_exact_weight(model, exact, kind):
    merge_silently(model)
    layer = layer_of(model)
    assert layer.merged_adapters == ["default"]
    assert 0 < off(dense(layer.base_layer), exact) < LARGEST[kind]


def test_warning_says_the_error(model, exact):
    with pytest.warns(UserWarning, match=r"merge_adapter: 1 quantised weight .*\(layer\)") as found:
        model.merge_adapter()
    (said,) = re.findall(r"by up to (\S+) of its Frobenius norm", str(found[0].message))
    assert float(said) == pytest.approx(off(dense(layer_of(model).base_layer), exact), rel=0.05)


def test_merged_model_computes_with_the_merged_weight(model):
    x = normal(5, IN)
    unmerged = model(x)
    merge_silently(model)
    layer = layer_of(model)
    expected = x.double() @ dense(layer.base_layer).T + layer.base_layer.bias.double()
    # 8-bit rounds the activations too.
    torch.testing.assert_close(
        model(x).double(), expected, rtol=0, atol=0.02 * expected.abs().max()
    )
    assert not torch.equal(model(x), unmerged)


def test_unmerge_restores_every_bit(model):
    layer = layer_of(model)
    before = dense(layer.base_layer)
    merge_silently(model)
    model.unmerge_adapter()
    assert torch.equal(dense(layer.base_layer), before)
    assert layer.merged_adapters == []


def test_unmerge_restores_a_layer_that_has_run(model):
    x = normal(5, IN)
    expected = model(x)
    merge_silently(model)
    model.unmerge_adapter()
    assert torch.equal(model(x), expected)


def test_nothing_stays_after_unmerging(model):
    before = sorted(layer_of(model).__dict__)
    merge_silently(model)
    model.unmerge_adapter()
    assert sorted(layer_of(model).__dict__) == before


def test_second_adapter_is_merged_from_the_original(model, exact, kind):
    torch.manual_seed(8)
    model.add_adapter("second", gralora(target_modules=["layer"]))
    layer = layer_of(model)
    exact = exact + layer.get_delta_weight("second").detach().double()
    merge_silently(model, adapter_names=["default"])
    merge_silently(model, adapter_names=["second"])
    one_by_one = dense(layer.base_layer)
    model.unmerge_adapter()
    merge_silently(model, adapter_names=["default", "second"])
    assert torch.equal(one_by_one, dense(layer.base_layer))
    assert off(one_by_one, exact) < LARGEST[kind]


def test_disabling_unmerges(model):
    layer, x = layer_of(model), normal(5, IN)
    expected = layer.base_layer(x)
    merge_silently(model)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), expected)
    assert not layer.merged


def test_merge_and_unload(model, exact, kind):
    base = layer_of(model).base_layer
    with pytest.warns(
        UserWarning, match="merge_and_unload: 1 quantised weight was quantised again"
    ):
        merged = model.merge_and_unload()
    assert merged.layer is base
    assert 0 < off(dense(base), exact) < LARGEST[kind]


def test_layer_alone_warns_of_itself(model):
    with pytest.warns(UserWarning, match=r"^merge: 1 quantised weight was"):
        layer_of(model).merge()


def test_merging_twice_changes_nothing(model):
    merge_silently(model)
    layer = layer_of(model)
    before = dense(layer.base_layer)
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()
    assert torch.equal(dense(layer.base_layer), before)


def test_safe_merge_refuses_what_is_not_finite(model):
    layer = layer_of(model)
    before = dense(layer.base_layer)
    with torch.no_grad():
        layer.gralora_A["default"][0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="merge_adapter: layer: the merged weight must be finite"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(dense(layer.base_layer), before)
    assert not layer.merged


def test_restore_is_refused_while_merged(model):
    merge_silently(model)
    accelerated = type(layer_of(model))
    with pytest.raises(RuntimeError, match=r"restore: .*\['default'\].* \(call unmerge_adapter"):
        restore(model)
    assert type(layer_of(model)) is accelerated
    model.unmerge_adapter()
    assert type(layer_of(restore(model))) is not accelerated


MERGES = {
    "merge_adapter": lambda model: model.merge_adapter(),
    "merge_and_unload": lambda model: model.merge_and_unload(),
}


def over(*bases):
    """An accelerated network over several layers in a row, named by letters."""
    model = nn.Sequential()
    for name, base in zip("abc", bases, strict=False):
        model.add_module(name, base)
    torch.manual_seed(1)
    names = [name for name, _ in model.named_children()]
    return accelerate(get_peft_model(model, gralora(target_modules=names)))


@pytest.mark.parametrize("merge", MERGES)
def test_refusal_leaves_every_layer_as_it_was(merge):
    model = over(nn.Linear(IN, IN), nn.Linear(IN, IN), int4())
    x = normal(5, IN)
    expected, classes = model(x), [type(module) for module in model.modules()]
    message = rf"{merge}: c: a weight of torchao must be int8 .* \(merge the adapter into the unq"
    with pytest.raises(RuntimeError, match=message):
        MERGES[merge](model)
    assert [type(module) for module in model.modules()] == classes
    assert not any(getattr(module, "merged_adapters", []) for module in model.modules())
    assert torch.equal(model(x), expected)


def test_plain_layers_are_merged_beside_quantised_ones():
    model = over(nn.Linear(IN, IN), four_bit())
    first = model.base_model.model.a
    expected = (first.base_layer.weight + first.get_delta_weight("default")).detach()
    with pytest.warns(UserWarning, match=r"1 quantised weight was .*\(b\)"):
        merged = model.merge_and_unload()
    torch.testing.assert_close(merged.a.weight.detach(), expected)
    assert merged(normal(5, IN)).shape == (5, OUT)


def test_layer_alone_refuses_int4():
    model = over(int4())
    with pytest.raises(RuntimeError, match="merge: a: a weight of torchao must be int8"):
        model.base_model.model.a.merge()
