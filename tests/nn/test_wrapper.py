"""GraLoRAWrapper: adapters beside a layer that computes for itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gralora.nn import GraLoRALinear, GraLoRAWrapper


class Squared(nn.Module):
    """No matrix at all; its output is needed again by its own backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 12, 8
        self.table = nn.Parameter(torch.randn(12, 8, dtype=torch.float64))

    def forward(self, x, shift=0.0):
        return torch.exp(x @ self.table / 10 + shift)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.fixture
def base():
    torch.manual_seed(0)
    return Squared()


@pytest.fixture
def x():
    return torch.randn(5, 12, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"r": 8, "k": 2}, id="k2"),
        pytest.param({"r": 8, "k": (4, 2)}, id="k_out4-k_in2"),
        pytest.param({"r": 8, "k": 2, "hybrid_r": 8}, id="hybrid"),
    ],
)
def test_output_and_input_gradient(base, x, options, randomise, dense_update):
    layer = randomise(GraLoRAWrapper(base, **options))
    update = dense_update(layer, "default", 16 / (8 + options.get("hybrid_r", 0)))
    expected = base(x) + x @ update.T
    torch.testing.assert_close(layer(x), expected)
    dy = torch.randn(5, 8, dtype=torch.float64)
    (ours,), (theirs,) = (torch.autograd.grad(y, x, dy) for y in (layer(x), expected))
    torch.testing.assert_close(ours, theirs)


def test_gradients_of_the_factors(base, x, randomise, dense_update):
    layer = randomise(GraLoRAWrapper(base, r=8, k=2, hybrid_r=4))
    plain = GraLoRALinear(12, 8, r=8, k=2, hybrid_r=4, bias=False, dtype=torch.float64)
    nn.init.zeros_(plain.weight)
    plain.load_state_dict(layer.state_dict(), strict=False)
    dy = torch.randn(5, 8, dtype=torch.float64)
    layer(x).backward(dy)
    plain(x).backward(dy)
    for factor in ("gralora_A", "gralora_B", "lora_A", "lora_B"):
        ours, theirs = (getattr(which, factor)["default"].grad for which in (layer, plain))
        torch.testing.assert_close(ours, theirs)


def test_fresh_adapter_changes_nothing(base, x):
    expected = base(x)
    assert torch.equal(GraLoRAWrapper(base, r=4)(x), expected)


def test_further_arguments_reach_the_base(base, x):
    expected = base(x, shift=1.0)
    assert torch.equal(GraLoRAWrapper(base, r=4)(x, shift=1.0), expected)


def test_output_of_the_base_is_not_written_to(base, x, randomise):
    layer = randomise(GraLoRAWrapper(base, r=4))
    outputs = []
    base.register_forward_hook(lambda module, args, y: outputs.append((y, y.clone())))
    layer(x).sum().backward()
    assert torch.equal(*outputs[0])


def test_names_of_parameters_are_pefts(base):
    layer = GraLoRAWrapper(base, r=4, hybrid_r=2)
    assert set(layer.state_dict()) == {
        "base_layer.table",
        "gralora_A.default",
        "gralora_B.default",
        "lora_A.default",
        "lora_B.default",
    }


def test_only_the_adapter_trains(base):
    layer = GraLoRAWrapper(base, r=4)
    trained = {name for name, p in layer.named_parameters() if p.requires_grad}
    assert trained == {"gralora_A.default", "gralora_B.default"}


def test_adapters_come_and_go(base, x, randomise, dense_update):
    layer = GraLoRAWrapper(base, r=4)
    layer.add_adapter("other", r=8, k=4)
    randomise(layer)
    layer.set_adapter(["default", "other"])
    updates = [dense_update(layer, name, 2.0) for name in ("default", "other")]
    torch.testing.assert_close(layer(x), base(x) + x @ (updates[0] + updates[1]).T)
    layer.delete_adapter("default")
    torch.testing.assert_close(layer(x), base(x) + x @ updates[1].T)
    layer.enable_adapters(False)
    assert torch.equal(layer(x), base(x))


def test_dropout_acts_on_the_adapter_alone(base, x, randomise):
    layer = randomise(GraLoRAWrapper(base, r=4, dropout=1.0))
    assert torch.equal(layer(x), base(x))
    assert not torch.equal(layer.eval()(x), base(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_adapter_over_a_narrow_base_is_fp32(dtype):
    layer = GraLoRAWrapper(Doubled(12, 8, dtype=dtype), r=4)
    assert layer.gralora_A["default"].dtype == torch.float32
    assert layer(torch.randn(3, 12, dtype=dtype)).dtype == dtype


def test_reset_parameters_leaves_the_base(base):
    layer = GraLoRAWrapper(base, r=4)
    before = base.table.detach().clone()
    nn.init.ones_(layer.gralora_B["default"])
    layer.reset_parameters()
    assert torch.equal(base.table, before)
    assert not layer.gralora_B["default"].any()


def test_copy_computes_the_same(base, x, randomise):
    layer = randomise(GraLoRAWrapper(base, r=4))
    twin = copy.deepcopy(layer)
    assert twin.base_layer is not base
    assert torch.equal(twin(x), layer(x))


def test_compiled_layer_computes_the_same(base, x, randomise):
    layer = randomise(GraLoRAWrapper(base, r=4))
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
    torch._dynamo.reset()


def test_weight_and_bias_are_the_bases(x):
    linear = Doubled(12, 8)
    layer = GraLoRAWrapper(linear, r=4)
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias


def test_plain_is_the_base(base):
    assert GraLoRAWrapper(base, r=4).plain() is base


def test_text_names_base_and_adapters(base):
    text = repr(GraLoRAWrapper(base, r=4))
    assert "default: r=4, k=2, alpha=8 (active)" in text
    assert "(base_layer): Squared()" in text


def test_merging_into_an_unknown_forward_is_refused(x, randomise):
    layer = randomise(GraLoRAWrapper(Doubled(12, 8), r=4))
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"^GraLoRAWrapper\.merge: .*got a .*Doubled, whose"):
        layer.merge()
    assert torch.equal(layer.weight, before)
    assert not layer.merged


@pytest.mark.parametrize(
    ("module", "text"),
    [
        pytest.param(nn.Embedding(4, 8), "in_features must be an int, got None", id="embedding"),
        pytest.param(nn.ModuleList(), "needs a module with a forward", id="container"),
        pytest.param(GraLoRALinear(12, 8, r=4), "needs a layer without adapters", id="adapted"),
    ],
)
def test_other_modules_are_refused(module, text):
    with pytest.raises(TypeError, match=f"^GraLoRAWrapper: {text}"):
        GraLoRAWrapper(module)


def test_refused_settings_freeze_nothing(base):
    with pytest.raises(ValueError, match="k_in"):
        GraLoRAWrapper(base, r=5, k=5)
    assert base.table.requires_grad
