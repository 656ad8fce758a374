"""Every refusal: its text, and that it leaves the layer as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gralora.nn import GraLoRALinear

OPTIONS = [
    pytest.param(
        {"k": 4},
        ValueError,
        r"in_features must be divisible by k_in, got in_features=4097, k_in=4 "
        r"\(divisors: 1, 17, 241, 4097\)",
        (4097, 8),
        id="in_features",
    ),
    pytest.param(
        {"k": 4},
        ValueError,
        r"out_features must be divisible by k_out, got out_features=6, k_out=4 "
        r"\(divisors: 1, 2, 3, 6\)",
        (8, 6),
        id="out_features",
    ),
    pytest.param(
        {"k": (3, 2)},
        ValueError,
        r"out_features must be divisible by k_out, got out_features=8, k_out=3 "
        r"\(divisors: 1, 2, 4, 8\)",
        (12, 8),
        id="k_out-of-a-pair",
    ),
    pytest.param(
        {"r": 6, "k": 4},
        ValueError,
        r"r must be divisible by k_in, got r=6, k_in=4 \(divisors: 1, 2, 3, 6\)",
        (12, 8),
        id="rank",
    ),
    pytest.param({"r": 0}, ValueError, r"r must be at least 1, got r=0", (12, 8), id="rank-zero"),
    pytest.param(
        {"r": -4}, ValueError, r"r must be at least 1, got r=-4", (12, 8), id="rank-negative"
    ),
    pytest.param({"r": 4.0}, TypeError, r"r must be an int, got 4\.0", (12, 8), id="rank-float"),
    pytest.param({"r": True}, TypeError, r"r must be an int, got True", (12, 8), id="rank-bool"),
    pytest.param({"r": "4"}, TypeError, r"r must be an int, got '4'", (12, 8), id="rank-str"),
    pytest.param({"k": 0}, ValueError, r"k.* must be .*got .*0", (12, 8), id="k-zero"),
    pytest.param({"k": -2}, ValueError, r"k.* must be .*got .*-2", (12, 8), id="k-negative"),
    pytest.param({"k": 2.0}, TypeError, r"k must be an int.*got 2\.0", (12, 8), id="k-float"),
    pytest.param({"k": "two"}, (TypeError, ValueError), r"auto.*'two'", (12, 8), id="k-word"),
    pytest.param(
        {"k": (2, 2, 2)},
        (TypeError, ValueError),
        r"k_out, k_in.*\(2, 2, 2\)",
        (12, 8),
        id="k-triple",
    ),
    pytest.param(
        {"k": (2, "2")}, (TypeError, ValueError), r"k.* must be .*'2'", (12, 8), id="k-pair-of-str"
    ),
    pytest.param({"k": None}, TypeError, r"k must be .*None", (12, 8), id="k-none"),
    pytest.param(
        {"hybrid_r": -1}, ValueError, r"hybrid_r must be .*got .*-1", (12, 8), id="hybrid-negative"
    ),
    pytest.param(
        {"hybrid_r": 1.5}, TypeError, r"hybrid_r must be .*1\.5", (12, 8), id="hybrid-float"
    ),
    pytest.param({"alpha": "16"}, TypeError, r"alpha must be .*'16'", (12, 8), id="alpha-str"),
    pytest.param(
        {"alpha": float("nan")}, ValueError, r"alpha must be .*nan", (12, 8), id="alpha-nan"
    ),
    pytest.param(
        {"alpha": float("inf")}, ValueError, r"alpha must be .*inf", (12, 8), id="alpha-inf"
    ),
    pytest.param(
        {"dropout": -0.1}, ValueError, r"dropout must .*-0\.1", (12, 8), id="dropout-negative"
    ),
    pytest.param(
        {"dropout": 1.5}, ValueError, r"dropout must .*1\.5", (12, 8), id="dropout-above-one"
    ),
    pytest.param(
        {"dropout": "half"}, TypeError, r"dropout must .*'half'", (12, 8), id="dropout-str"
    ),
    pytest.param(
        {"dropout": float("nan")}, ValueError, r"dropout must .*nan", (12, 8), id="dropout-nan"
    ),
    pytest.param(
        {"adapter_dtype": torch.int32},
        (TypeError, ValueError),
        r"adapter_dtype must .*int32",
        (12, 8),
        id="adapter_dtype-int",
    ),
    pytest.param(
        {"adapter_dtype": "bf16"},
        TypeError,
        r"adapter_dtype must .*bf16",
        (12, 8),
        id="adapter_dtype-str",
    ),
]

BAD_NAMES = [
    pytest.param("", ValueError, "''", id="empty"),
    pytest.param("a.b", ValueError, "a.b", id="dot"),
    pytest.param("train", ValueError, "train", id="module-method"),
    pytest.param("keys", ValueError, "keys", id="dict-method"),
    pytest.param("1x", ValueError, "1x", id="leading-digit"),
    pytest.param("a b", ValueError, "a b", id="space"),
    pytest.param("a-b", ValueError, "a-b", id="hyphen"),
    pytest.param("__class__", ValueError, "__class__", id="dunder"),
    pytest.param("training", ValueError, "training", id="module-attribute"),
    pytest.param("default", ValueError, "default", id="taken"),
    pytest.param(3, TypeError, "3", id="int"),
    pytest.param(None, TypeError, "None", id="none"),
]


@pytest.fixture
def layer(randomise):
    """ "default" and a hybrid "second", with an update that is not zero."""
    layer = GraLoRALinear(12, 8, r=4, k=2)
    layer.add_adapter("second", r=4, k=2, hybrid_r=2)
    return randomise(layer)


@pytest.mark.parametrize(("options", "error", "text", "size"), OPTIONS)
def test_constructor_refuses(options, error, text, size):
    with pytest.raises(error, match=text) as caught:
        GraLoRALinear(*size, **{"r": 4, **options})
    assert str(caught.value).startswith("GraLoRALinear")


@pytest.mark.parametrize(("options", "error", "text", "size"), OPTIONS)
def test_from_linear_refuses_and_leaves_the_linear_layer_alone(options, error, text, size):
    linear = nn.Linear(*size)
    with pytest.raises(error, match=text):
        GraLoRALinear.from_linear(linear, **{"r": 4, **options})
    assert linear.weight.requires_grad
    assert linear.bias.requires_grad


@pytest.mark.parametrize(("options", "error", "text", "size"), OPTIONS)
def test_add_adapter_refuses_and_changes_nothing(
    options, error, text, size, snapshot, assert_same_state
):
    layer = GraLoRALinear(*size, r=4, k=1)
    before = snapshot(layer)
    with pytest.raises(error, match=text):
        layer.add_adapter("second", **{"r": 4, **options})
    assert_same_state(layer, before)


@pytest.mark.parametrize(("name", "error", "text"), BAD_NAMES)
def test_add_adapter_refuses_the_name(layer, name, error, text, snapshot, assert_same_state):
    before = snapshot(layer)
    with pytest.raises(error, match=text):
        layer.add_adapter(name, r=4, k=2)
    assert_same_state(layer, before)


CALLS = [
    pytest.param(lambda layer: layer.set_adapter("missing"), id="set_adapter"),
    pytest.param(lambda layer: layer.set_adapter(["second", "missing"]), id="set_adapter-list"),
    pytest.param(lambda layer: layer.delete_adapter("missing"), id="delete_adapter"),
    pytest.param(lambda layer: layer.delta_weight("missing"), id="delta_weight"),
    pytest.param(lambda layer: layer.merge(adapter_names=["missing"]), id="merge"),
    pytest.param(
        lambda layer: layer.merge(adapter_names=["default", "missing"]), id="merge-second"
    ),
]


@pytest.mark.parametrize("call", CALLS)
def test_unknown_adapter_is_refused(layer, call, snapshot, assert_same_state):
    before = snapshot(layer)
    with pytest.raises((KeyError, ValueError), match="missing") as caught:
        call(layer)
    assert "default" in str(caught.value)
    assert "second" in str(caught.value)
    assert_same_state(layer, before)


@pytest.mark.parametrize("names", [3, [3], None, ["default", None]], ids=str)
def test_set_adapter_refuses_other_types(layer, names, snapshot, assert_same_state):
    before = snapshot(layer)
    with pytest.raises(TypeError, match=r"GraLoRALinear\.set_adapter: .*sequence of str, got "):
        layer.set_adapter(names)
    assert_same_state(layer, before)


def test_set_adapter_refuses_a_name_twice(layer, snapshot, assert_same_state):
    before = snapshot(layer)
    with pytest.raises(ValueError, match="default"):
        layer.set_adapter(["default", "default"])
    assert_same_state(layer, before)


MERGED_CALLS = [
    pytest.param(lambda layer: layer.delete_adapter("default"), id="delete_adapter"),
    pytest.param(lambda layer: layer.reset_parameters(), id="reset_parameters"),
    pytest.param(
        lambda layer: layer.load_state_dict(dict(layer.named_parameters())),
        id="load_state_dict",
    ),
]


@pytest.mark.parametrize("call", MERGED_CALLS)
def test_merged_layer_refuses(layer, call, snapshot, assert_same_state):
    layer.merge(adapter_names=["default"])
    before = snapshot(layer)
    with pytest.raises(RuntimeError, match=r"default.* merged into .*unmerge\(\)"):
        call(layer)
    assert_same_state(layer, before)


@pytest.mark.parametrize("call", MERGED_CALLS)
def test_layer_merged_for_good_says_so(layer, call, snapshot, assert_same_state):
    layer.merge(adapter_names=["default"], keep=False)
    before = snapshot(layer)
    with pytest.raises(RuntimeError, match=r"default.* merged into .*keep=False.*new layer"):
        call(layer)
    assert_same_state(layer, before)


def test_merge_on_the_meta_device_is_refused(snapshot):
    layer = GraLoRALinear(12, 8, r=4, k=2, device="meta")
    with pytest.raises(RuntimeError, match=r"meta"):
        layer.merge()
    assert not layer.merged


@pytest.mark.parametrize("names", [3, [3], [None]], ids=str)
def test_merge_refuses_other_types(layer, names, snapshot, assert_same_state):
    before = snapshot(layer)
    with pytest.raises(TypeError, match=r"GraLoRALinear\.merge: .*sequence of str, got "):
        layer.merge(adapter_names=names)
    assert_same_state(layer, before)


@pytest.mark.parametrize("keep", [True, None, "gpu", "", 1], ids=repr)
def test_merge_refuses_an_unknown_keep(layer, keep, snapshot, assert_same_state):
    before = snapshot(layer)
    with pytest.raises((TypeError, ValueError), match=r"keep must be .*device.*cpu.*False"):
        layer.merge(keep=keep)
    assert_same_state(layer, before)


@pytest.mark.parametrize(
    "module",
    [nn.Conv1d(4, 4, 1), nn.Bilinear(4, 4, 4), torch.ones(4, 4)],
    ids=lambda m: type(m).__name__,
)
def test_from_linear_refuses_other_modules(module):
    with pytest.raises(TypeError, match=rf"nn\.Linear.*{type(module).__name__}"):
        GraLoRALinear.from_linear(module, r=4)


@pytest.mark.parametrize(
    ("size", "error", "text"),
    [
        pytest.param((0, 8), ValueError, "in_features", id="in-zero"),
        pytest.param((8, -8), ValueError, "out_features", id="out-negative"),
        pytest.param((8.0, 8), TypeError, "in_features", id="in-float"),
    ],
)
def test_sizes_are_refused(size, error, text):
    with pytest.raises(error, match=text):
        GraLoRALinear(*size, r=4, k=2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_dtypes_that_have_no_adapter_are_refused(dtype):
    with pytest.raises((TypeError, RuntimeError), match=r"dtype|floating"):
        GraLoRALinear(12, 8, r=4, k=2, dtype=dtype)
