"""State dicts, copies, pickles and conversions keep what a layer computes."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch.nn import functional as F

from gralora.nn import GraLoRALinear


@pytest.fixture
def layer(randomise):
    """Two adapters, one of them hybrid, both active."""
    layer = GraLoRALinear(12, 8, r=4, k=2, hybrid_r=2)
    layer.add_adapter("second", r=8, k=(2, 4), alpha=3)
    layer.set_adapter(["default", "second"])
    return randomise(layer)


@pytest.fixture
def x():
    return torch.randn(5, 12)


def twin():
    """A layer of the same structure with other numbers."""
    layer = GraLoRALinear(12, 8, r=4, k=2, hybrid_r=2)
    layer.add_adapter("second", r=8, k=(2, 4), alpha=3)
    layer.set_adapter(["default", "second"])
    return layer


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_state_dict_round_trip(layer, x, assign):
    other = twin()
    result = other.load_state_dict(layer.state_dict(), strict=True, assign=assign)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_loading_keeps_requires_grad(layer, assign):
    other = twin()
    other.set_adapter("second")
    flags = {name: p.requires_grad for name, p in other.named_parameters()}
    other.load_state_dict(layer.state_dict(), assign=assign)
    assert {name: p.requires_grad for name, p in other.named_parameters()} == flags


def test_state_dict_holds_tensors_only(layer):
    assert all(isinstance(value, torch.Tensor) for value in layer.state_dict().values())


def test_strict_load_refuses_a_missing_factor(layer):
    state = layer.state_dict()
    del state["gralora_A.second"]
    with pytest.raises(RuntimeError, match=r"gralora_A\.second"):
        twin().load_state_dict(state)


def test_strict_load_refuses_an_adapter_it_lacks(layer):
    with pytest.raises(RuntimeError, match=r"gralora_A\.second"):
        GraLoRALinear(12, 8, r=4, k=2, hybrid_r=2).load_state_dict(layer.state_dict())


def test_load_refuses_factors_of_another_grid(layer):
    other = GraLoRALinear(12, 8, r=4, k=4, hybrid_r=2)
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(layer.state_dict(), strict=False)


def test_state_dict_of_a_plain_linear_loads_as_the_base(layer):
    linear = torch.nn.Linear(12, 8)
    result = layer.load_state_dict(linear.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert torch.equal(layer.weight, linear.weight)


def test_saved_file_loads_without_pickle(layer, tmp_path):
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    state = torch.load(tmp_path / "layer.pt", weights_only=True)
    other = twin()
    other.load_state_dict(state)
    assert torch.equal(other.gralora_A["second"], layer.gralora_A["second"])


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "pickle"],
)
class TestDuplicate:
    """A deep copy and a pickled copy: equal, and independent."""

    def test_computes_the_same(self, layer, x, duplicate):
        assert torch.equal(duplicate(layer)(x), layer(x))

    def test_keeps_the_adapters_and_the_choice(self, layer, duplicate):
        layer.set_adapter("second")
        other = duplicate(layer)
        assert other.adapters == layer.adapters
        assert list(other.active_adapters) == ["second"]

    def test_keeps_requires_grad(self, layer, duplicate):
        layer.set_adapter("second")
        flags = {name: p.requires_grad for name, p in layer.named_parameters()}
        assert {n: p.requires_grad for n, p in duplicate(layer).named_parameters()} == flags

    def test_shares_no_memory(self, layer, x, duplicate):
        other = duplicate(layer)
        before = layer(x)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        assert torch.equal(layer(x), before)

    def test_may_be_merged_while_the_original_lives(self, layer, x, duplicate):
        other = duplicate(layer)
        before = layer(x)
        other.merge()
        assert torch.equal(layer(x), before)
        assert not layer.merged

    @pytest.mark.parametrize("keep", ["cpu", "device"])
    def test_of_a_merged_layer_unmerges_to_the_same_bits(self, layer, duplicate, keep):
        base = layer.weight.detach().clone()
        layer.merge(keep=keep)
        other = duplicate(layer)
        assert other.merged
        other.unmerge()
        assert torch.equal(other.weight, base)

    def test_of_a_switched_off_layer_is_switched_off(self, layer, x, duplicate):
        layer.enable_adapters(False)
        other = duplicate(layer)
        assert torch.equal(other(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("half", torch.float16), ("bfloat16", torch.bfloat16), ("double", torch.float64)],
)
def test_conversion_covers_every_parameter(layer, method, dtype):
    getattr(layer, method)()
    assert {p.dtype for p in layer.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_forward_works_after_conversion(layer, x, dtype):
    expected = layer(x).to(dtype)
    tolerance = 1e-5 if dtype is torch.float64 else 5e-2
    actual = layer.to(dtype)(x.to(dtype))
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def test_to_moves_every_parameter(layer, device):
    layer.to(device)
    assert {p.device.type for p in layer.parameters()} == {torch.device(device).type}


def test_conversion_keeps_requires_grad(layer):
    layer.set_adapter("second")
    flags = {name: p.requires_grad for name, p in layer.named_parameters()}
    layer.double()
    assert {name: p.requires_grad for name, p in layer.named_parameters()} == flags


@pytest.mark.parametrize("keep", ["cpu", "device"])
def test_unmerge_after_a_conversion_gives_the_converted_base(layer, keep):
    base = layer.weight.detach().clone()
    layer.merge(keep=keep)
    layer.double()
    layer.unmerge()
    assert torch.equal(layer.weight, base.double())


def test_functional_call_uses_the_given_parameters(layer, x):
    other = twin()
    parameters = dict(other.named_parameters())
    assert torch.equal(torch.func.functional_call(layer, parameters, (x,)), other(x))


def test_a_dropped_layer_is_collected():
    layer = GraLoRALinear(12, 8, r=4, k=2)
    layer.merge()
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None
