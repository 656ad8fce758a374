"""After something went wrong inside, the layer is what it was, or says what it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gralora.nn import GraLoRALinear


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> GraLoRALinear:
    """Two adapters, both active; adding the second to the weight fails."""
    layer = GraLoRALinear(16, 16, r=4, k=2)
    layer.add_adapter("second", r=4, k=2)
    layer.set_adapter(["default", "second"])
    with torch.no_grad():
        for parameter in [*layer.gralora_B.values()]:
            parameter.normal_()
    add = layer._add_to

    def fail_at_second(weight: torch.Tensor, name: str) -> None:
        if name == "second":
            raise MemoryError("no room")
        add(weight, name)

    monkeypatch.setattr(layer, "_add_to", fail_at_second)
    return layer


@pytest.mark.parametrize("keep", ["cpu", "device"])
def test_a_merge_that_fails_halfway_is_taken_back(layer: GraLoRALinear, keep: str) -> None:
    base = layer.weight.clone()
    with pytest.raises(MemoryError):
        layer.merge(keep=keep)
    assert torch.equal(layer.weight, base)
    assert not layer.merged
    assert layer._kept is None


def test_without_a_kept_weight_it_says_what_was_merged(layer: GraLoRALinear) -> None:
    with pytest.raises(MemoryError):
        layer.merge(keep=False)
    assert layer.merged_adapters == ["default"]


def test_a_weight_of_another_tensor_type_is_refused_before_anything_is_kept() -> None:
    class Sharded(nn.Parameter):
        """Stands for a DTensor."""

    layer = GraLoRALinear(16, 16, r=4, k=2)
    layer.weight = Sharded(layer.weight.detach(), requires_grad=False)
    with pytest.raises(
        RuntimeError, match=r"merge: the weight must be an ordinary tensor.*Sharded"
    ):
        layer.merge()
    assert layer._kept is None


def test_state_of_a_merged_layer_is_that_of_the_unmerged_one() -> None:
    layer = GraLoRALinear(16, 16, r=4, k=2)
    with torch.no_grad():
        layer.gralora_B["default"].normal_()
    x = torch.randn(3, 16)
    expected = layer(x)
    layer.merge()
    other = GraLoRALinear(16, 16, r=4, k=2)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), expected)


def test_state_of_a_layer_merged_for_good_is_refused() -> None:
    layer = GraLoRALinear(16, 16, r=4, k=2)
    layer.merge(keep=False)
    with pytest.raises(RuntimeError, match=r"state_dict: \['default'\] are merged.*twice"):
        layer.state_dict()


def test_a_merged_adapter_is_not_reset() -> None:
    layer = GraLoRALinear(16, 16, r=4, k=2)
    layer.merge()
    with pytest.raises(RuntimeError, match="reset_adapter: 'default' is merged"):
        layer.reset_adapter("default")


def test_a_computed_weight_is_refused() -> None:
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
    with pytest.raises(TypeError, match="from_linear: weight must be a parameter"):
        GraLoRALinear.from_linear(linear, r=4, k=2)


def test_a_layer_without_inputs_is_refused_and_not_frozen() -> None:
    linear = nn.Linear(0, 16)
    with pytest.raises(ValueError, match=r"from_linear: in_features must be at least 1, got"):
        GraLoRALinear.from_linear(linear, r=4, k=2)
    assert linear.weight.requires_grad


def test_a_keyword_is_no_adapter_name() -> None:
    with pytest.raises(ValueError, match=r"plain identifier.*'class'"):
        GraLoRALinear(16, 16, r=4, k=2).add_adapter("class")
