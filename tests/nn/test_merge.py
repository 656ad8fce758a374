"""Merging into the base weight and back, bit for bit."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gralora.nn import GraLoRALinear

KEEPS = ["cpu", "device"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def layer(randomise, device):
    """ "default", "second" and a hybrid "third"; the first two are active."""
    layer = GraLoRALinear(12, 8, r=4, k=2, device=device)
    layer.add_adapter("second", r=8, k=(2, 4), alpha=3)
    layer.add_adapter("third", r=4, k=2, hybrid_r=2)
    layer.set_adapter(["default", "second"])
    return randomise(layer)


def weight_of(layer):
    return layer.weight.detach().clone()


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unmerge_restores_every_bit(device, dtype, keep, randomise):
    layer = randomise(GraLoRALinear(48, 32, r=8, k=4, hybrid_r=2, device=device, dtype=dtype))
    before = weight_of(layer)
    layer.merge(keep=keep)
    assert not torch.equal(layer.weight, before)
    layer.unmerge()
    assert torch.equal(layer.weight, before)


def test_unmerge_restores_special_values(device, randomise):
    layer = randomise(GraLoRALinear(12, 8, r=4, k=2, device=device))
    with torch.no_grad():
        layer.weight[0, :4] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42])
    before = weight_of(layer).view(torch.int32)
    layer.merge()
    layer.unmerge()
    assert torch.equal(layer.weight.detach().view(torch.int32), before)


def test_default_keep_restores_every_bit(layer):
    before = weight_of(layer)
    layer.merge()
    layer.unmerge()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merged_weight_is_base_plus_delta_rounded_once(device, dtype, randomise):
    layer = randomise(GraLoRALinear(48, 32, r=8, k=4, hybrid_r=2, device=device, dtype=dtype))
    expected = layer.weight.double() + layer.delta_weight().double()
    layer.merge()
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(
        layer.weight.double(), expected, rtol=rounding, atol=8 * rounding * 0.1
    )


def test_merged_forward_equals_the_adapted_forward(layer, device):
    x = torch.randn(5, 12, device=device)
    adapted = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), adapted)


def test_merged_forward_is_the_plain_product(layer, device):
    x = torch.randn(5, 12, device=device)
    layer.merge()
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_forward_after_unmerge_has_the_same_bits(layer, device):
    x = torch.randn(5, 12, device=device)
    adapted = layer(x)
    layer.merge()
    layer.unmerge()
    assert torch.equal(layer(x), adapted)


def test_merging_keeps_the_weight_object_and_its_memory(layer):
    weight, pointer = layer.weight, layer.weight.data_ptr()
    layer.merge()
    assert layer.weight is weight
    assert layer.weight.data_ptr() == pointer
    layer.unmerge()
    assert layer.weight is weight
    assert layer.weight.data_ptr() == pointer


def test_merging_touches_no_factor(layer):
    before = {k: v.clone() for k, v in layer.state_dict().items() if k != "weight"}
    layer.merge()
    for key, value in before.items():
        assert torch.equal(layer.state_dict()[key], value), key


def test_merged_adapters_are_listed(layer):
    assert not layer.merged
    assert list(layer.merged_adapters) == []
    layer.merge()
    assert layer.merged
    assert list(layer.merged_adapters) == ["default", "second"]
    layer.unmerge()
    assert not layer.merged
    assert list(layer.merged_adapters) == []


def test_merge_takes_a_subset(layer, device, dense_update):
    expected = layer.weight.double().cpu() + dense_update(layer, "third", 8 / 6)
    layer.merge(adapter_names=["third"])
    assert list(layer.merged_adapters) == ["third"]
    torch.testing.assert_close(layer.weight.double().cpu(), expected, rtol=1e-5, atol=1e-6)


def test_one_name_may_be_given_alone(layer):
    layer.merge(adapter_names="third")
    assert list(layer.merged_adapters) == ["third"]


def test_merges_may_follow_one_another(layer, dense_update):
    expected = (
        layer.weight.double().cpu()
        + dense_update(layer, "default", 2.0)
        + dense_update(layer, "third", 8 / 6)
    )
    before = weight_of(layer)
    layer.merge(adapter_names=["default"])
    layer.merge(adapter_names=["third"])
    assert list(layer.merged_adapters) == ["default", "third"]
    torch.testing.assert_close(layer.weight.double().cpu(), expected, rtol=1e-5, atol=1e-6)
    layer.unmerge()
    assert torch.equal(layer.weight, before)


def test_merged_adapters_are_not_merged_again(layer):
    layer.merge()
    merged = weight_of(layer)
    layer.merge()
    layer.merge(adapter_names=["second", "default"])
    assert torch.equal(layer.weight, merged)
    assert list(layer.merged_adapters) == ["default", "second"]


def test_merge_of_nothing_changes_nothing(layer):
    before = weight_of(layer)
    layer.merge(adapter_names=[])
    assert torch.equal(layer.weight, before)
    assert not layer.merged


def test_unmerge_of_an_unmerged_layer_changes_nothing(layer):
    before = weight_of(layer)
    layer.unmerge()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("keep", KEEPS)
def test_repeated_merge_and_unmerge_never_drifts(layer, keep):
    before = weight_of(layer)
    for _ in range(20):
        layer.merge(keep=keep)
        layer.unmerge()
    assert torch.equal(layer.weight, before)


def test_merged_weight_has_no_gradient_history(layer):
    layer.merge()
    assert layer.weight.grad_fn is None
    assert layer.weight.is_leaf


def test_merged_layer_gives_the_input_its_gradient(layer, device):
    layer.merge()
    x = torch.randn(5, 12, device=device, requires_grad=True)
    dy = torch.randn(5, 8, device=device)
    layer(x).backward(dy)
    torch.testing.assert_close(x.grad, dy @ layer.weight)


@pytest.mark.parametrize("keep", KEEPS)
def test_switched_off_while_merged_gives_the_base_result(layer, device, keep):
    x = torch.randn(5, 12, device=device)
    base = F.linear(x, layer.weight, layer.bias)
    layer.merge(keep=keep)
    layer.enable_adapters(False)
    assert torch.equal(layer(x), base)


def test_switched_off_after_keep_false_is_refused(layer, snapshot, assert_same_state):
    layer.merge(keep=False)
    before = snapshot(layer)
    with pytest.raises(RuntimeError, match=r"keep"):
        layer.enable_adapters(False)
    assert_same_state(layer, before)


def test_keeping_after_keep_false_is_refused(layer, snapshot, assert_same_state):
    layer.merge(adapter_names=["default"], keep=False)
    before = snapshot(layer)
    with pytest.raises(RuntimeError, match=r"keep"):
        layer.merge(adapter_names=["third"], keep="cpu")
    assert_same_state(layer, before)


def test_switched_on_again_the_adapters_act_unmerged(layer, device):
    x = torch.randn(5, 12, device=device)
    adapted = layer(x)
    layer.merge()
    layer.enable_adapters(False)
    layer.enable_adapters(True)
    assert torch.equal(layer(x), adapted)
    assert not layer.merged


def test_keep_false_cannot_be_undone(layer, snapshot, assert_same_state):
    layer.merge(keep=False)
    before = snapshot(layer)
    with pytest.raises(RuntimeError, match="keep"):
        layer.unmerge()
    assert_same_state(layer, before)


def test_keep_cpu_holds_the_base_on_the_cpu(cuda, randomise):
    layer = randomise(GraLoRALinear(1024, 1024, r=8, k=2, device=cuda))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    layer.merge(keep="cpu")
    assert torch.cuda.memory_allocated() - before < 1024 * 1024


def test_the_kept_base_is_no_part_of_the_state(layer):
    keys = set(layer.state_dict())
    layer.merge()
    assert set(layer.state_dict()) == keys


def test_bias_is_no_part_of_a_merge(layer):
    before = layer.bias.detach().clone()
    layer.merge()
    assert torch.equal(layer.bias, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("factor", ["gralora_A", "gralora_B", "lora_A", "lora_B"])
def test_safe_merge_of_a_broken_adapter_changes_nothing(
    layer, factor, bad, snapshot, assert_same_state
):
    with torch.no_grad():
        getattr(layer, factor)["third"].flatten()[1] = bad
    before = snapshot(layer)
    with pytest.raises(ValueError, match="third"):
        layer.merge(safe_merge=True, adapter_names=["default", "third"])
    assert_same_state(layer, before)
    assert not layer.merged


def test_safe_merge_sees_an_overflow_of_the_weight(device, randomise, snapshot, assert_same_state):
    layer = randomise(GraLoRALinear(12, 8, r=4, k=2, device=device, dtype=torch.float16))
    with torch.no_grad():
        layer.gralora_B["default"].mul_(1e6)
    before = snapshot(layer)
    with pytest.raises(ValueError, match="default"):
        layer.merge(safe_merge=True)
    assert_same_state(layer, before)


def test_safe_merge_of_a_sound_adapter_merges_the_same_bits(layer):
    layer.merge()
    merged = weight_of(layer)
    layer.unmerge()
    layer.merge(safe_merge=True)
    assert torch.equal(layer.weight, merged)


def test_safe_merge_can_be_undone(layer):
    before = weight_of(layer)
    layer.merge(safe_merge=True)
    layer.unmerge()
    assert torch.equal(layer.weight, before)


class TestSharedWeight:
    """A weight that a second adapted layer uses is not merged into."""

    def test_same_parameter(self, snapshot, assert_same_state):
        linear = nn.Linear(12, 8)
        first = GraLoRALinear.from_linear(linear, r=4)
        second = GraLoRALinear.from_linear(linear, r=4)
        before = snapshot(first)
        with pytest.raises(RuntimeError, match="share"):
            first.merge()
        assert_same_state(first, before)
        assert not second.merged

    def test_same_parameter_in_a_copy_of_both_layers(self):
        linear = nn.Linear(12, 8)
        pair = nn.ModuleList(GraLoRALinear.from_linear(linear, r=4) for _ in range(2))
        copies = copy.deepcopy(pair)
        with pytest.raises(RuntimeError, match="share"):
            copies[0].merge()

    @pytest.mark.parametrize(
        "view",
        [lambda w: w[4:], lambda w: w[:4], lambda w: w.view(8, 12)],
        ids=["tail", "head", "all"],
    )
    def test_view_of_the_parameter(self, view):
        linear = nn.Linear(12, 8)
        other = nn.Linear(12, view(linear.weight).shape[0])
        other.weight = nn.Parameter(view(linear.weight.detach()))
        first = GraLoRALinear.from_linear(linear, r=4)
        second = GraLoRALinear.from_linear(other, r=4)
        for layer in (first, second):
            with pytest.raises(RuntimeError, match="share"):
                layer.merge()

    def test_the_adopted_linear_layer_itself_is_no_obstacle(self, randomise):
        linear = nn.Linear(12, 8)
        layer = randomise(GraLoRALinear.from_linear(linear, r=4))
        layer.merge()
        assert layer.merged

    def test_disjoint_parts_of_one_memory_are_no_obstacle(self):
        whole = torch.randn(16, 12)
        layers = []
        for part in (whole[:8], whole[8:]):
            linear = nn.Linear(12, 8)
            linear.weight = nn.Parameter(part)
            layers.append(GraLoRALinear.from_linear(linear, r=4))
        for layer in layers:
            layer.merge()
        assert all(layer.merged for layer in layers)

    def test_free_again_when_the_other_layer_is_gone(self):
        linear = nn.Linear(12, 8)
        first = GraLoRALinear.from_linear(linear, r=4)
        second = GraLoRALinear.from_linear(linear, r=4)
        del second
        gc.collect()
        first.merge()
        assert first.merged

    def test_layers_with_their_own_weights_are_no_obstacle(self):
        layers = [GraLoRALinear(12, 8, r=4) for _ in range(3)]
        for layer in layers:
            layer.merge()
        assert all(layer.merged for layer in layers)


class TestChangesWhileMerged:
    """Adapters come and go while others are merged."""

    def test_newly_active_adapter_acts_on_top_of_the_merge(self, layer, device):
        x = torch.randn(5, 12, device=device)
        layer.set_adapter(["default", "third"])
        expected = layer(x)
        layer.merge(adapter_names=["default"])
        torch.testing.assert_close(layer(x), expected)

    def test_delete_after_unmerge_gives_the_base(self, layer):
        before = weight_of(layer)
        layer.merge()
        layer.unmerge()
        layer.delete_adapter("second")
        assert torch.equal(layer.weight, before)

    def test_delete_of_an_unmerged_adapter_keeps_the_merge(self, layer):
        layer.merge()
        merged = weight_of(layer)
        layer.delete_adapter("third")
        assert torch.equal(layer.weight, merged)
        assert list(layer.merged_adapters) == ["default", "second"]

    def test_add_keeps_the_merge(self, layer):
        layer.merge()
        merged = weight_of(layer)
        layer.add_adapter("fourth", r=4, k=2)
        assert torch.equal(layer.weight, merged)
        assert list(layer.merged_adapters) == ["default", "second"]

    def test_unmerge_after_training_steps_gives_the_base(self, layer):
        before = weight_of(layer)
        layer.merge()
        with torch.no_grad():
            layer.gralora_B["default"].add_(1)
        layer.unmerge()
        assert torch.equal(layer.weight, before)
