"""An injected model: the same outputs and base keys, and only the adapter trains."""

from __future__ import annotations

import pytest
import torch
from injection_models import (
    PROJECTIONS,
    Stack,
    adapted,
    llama,
    randomise,
    snapshot,
    tokens,
    trainable,
)
from peft import GraloraConfig, get_peft_model
from torch import nn

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject
from gralora.injection.plan import make_plan
from gralora.injection.record import adapter_records
from gralora.nn import GraLoRALinear


def test_returns_the_model_itself(model):
    assert inject(model, GraLoRAConfig(r=8)) is model


def test_fresh_adapter_changes_no_output(model, x):
    before = model(x).logits
    inject(model, GraLoRAConfig(r=8))
    assert torch.equal(model(x).logits, before)


def test_only_the_factors_train(model):
    inject(model, GraLoRAConfig(r=8, hybrid_r=2))
    factors = ("gralora_A", "gralora_B", "lora_A", "lora_B")
    expected = {f"{name}.{factor}.default" for name in adapted(model) for factor in factors}
    assert trainable(model) == expected


def test_layers_keep_the_very_weights(model):
    before = dict(model.named_parameters())
    inject(model, GraLoRAConfig(r=8))
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())


def test_base_state_dict_loads_with_only_adapter_keys_missing(model):
    torch.manual_seed(3)
    base = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    inject(model, GraLoRAConfig(r=8))
    result = model.load_state_dict(base, strict=False)
    assert result.unexpected_keys == []
    assert set(result.missing_keys) == trainable(model)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in base.items())


def test_own_state_dict_loads_strictly(model, x):
    randomise(inject(model, GraLoRAConfig(r=8)))
    other = inject(llama(), GraLoRAConfig(r=8))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x).logits, model(x).logits)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_modules_keep_their_mode(training):
    model = Stack().train(training)
    model.head.train(not training)
    inject(model, GraLoRAConfig(r=4))
    assert model.head.training is not training
    assert model.body.blocks[0].up.training is training


def test_output_and_gradients_are_those_of_peft():
    ours = inject(llama(), GraLoRAConfig(r=8, k=2, alpha=12, hybrid_r=2))
    theirs = get_peft_model(
        llama(),
        GraloraConfig(r=8, gralora_k=2, alpha=12, hybrid_r=2, target_modules="all-linear"),
    )
    randomise(ours)
    layers = dict(theirs.get_base_model().named_modules())
    pairs = []
    for name, spec in adapter_records(ours)["default"].targets.items():
        layer, peft_layer = ours.get_submodule(name), layers[name]
        assert spec.scaling == peft_layer.scaling["default"]
        pairs += [
            (layer.gralora_A["default"], peft_layer.gralora_A["default"]),
            (layer.gralora_B["default"], peft_layer.gralora_B["default"]),
            (layer.lora_A["default"], peft_layer.gralora_A_general["default"].weight),
            (layer.lora_B["default"], peft_layer.gralora_B_general["default"].weight),
        ]
    for mine, other in pairs:
        with torch.no_grad():
            other.copy_(mine)
    x = tokens()
    torch.testing.assert_close(ours(x).logits, theirs(x).logits)
    for network in (ours, theirs):
        network(input_ids=x, labels=x).loss.backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad)


def test_factors_of_a_low_precision_base_are_float32():
    model = inject(llama().bfloat16(), GraLoRAConfig(r=8))
    dtypes = {parameter.dtype for name, parameter in model.named_parameters() if "_A." in name}
    assert dtypes == {torch.float32}


def test_adapter_dtype_overrides():
    model = inject(llama(), GraLoRAConfig(r=8), adapter_dtype=torch.bfloat16)
    dtypes = {parameter.dtype for name, parameter in model.named_parameters() if "_A." in name}
    assert dtypes == {torch.bfloat16}


def test_adapter_may_have_any_name(model):
    inject(model, GraLoRAConfig(r=8), "poetry")
    layer = model.model.layers[0].self_attn.q_proj
    assert list(layer.adapters) == layer.active_adapters == ["poetry"]


def test_model_on_the_meta_device():
    with torch.device("meta"):
        model = llama()
    inject(model, GraLoRAConfig(r=8))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert len(adapted(model)) == 2 * len(PROJECTIONS)


def test_second_adapter_shares_the_layers_and_acts_alone(model, x):
    base = model(x).logits
    randomise(inject(model, GraLoRAConfig(r=8, target_modules=["q_proj"]), "first"))
    layer = model.model.layers[0].self_attn.q_proj
    inject(model, GraLoRAConfig(r=4, target_modules=["q_proj", "up_proj"]), "second")
    assert model.model.layers[0].self_attn.q_proj is layer
    assert list(layer.adapters) == ["first", "second"]
    assert layer.active_adapters == ["second"]
    assert torch.equal(model(x).logits, base)
    assert all(name.endswith(".second") for name in trainable(model))


def test_adapted_layer_of_the_users_own_gets_the_adapter():
    model = Stack()
    model.head = head = GraLoRALinear.from_linear(model.head, r=4)
    inject(model, GraLoRAConfig(r=4), "second")
    assert model.head is head
    assert head.active_adapters == ["second"]


def test_records_are_kept_in_order(model):
    first = GraLoRAConfig(r=8, target_modules=["q_proj"])
    second = GraLoRAConfig(r=4, target_modules=["up_proj"])
    inject(inject(model, first, "first"), second, "second")
    records = adapter_records(model)
    assert [(name, record.config) for name, record in records.items()] == [
        ("first", first),
        ("second", second),
    ]


def test_model_without_adapters_has_no_records(model):
    assert adapter_records(model) == {}


def test_records_are_found_behind_wrappers(model):
    inject(model, GraLoRAConfig(r=8))
    wrapped = torch.compile(nn.DataParallel(model))
    assert adapter_records(wrapped).keys() == {"default"}


def test_plan_changes_nothing(model):
    before = snapshot(model)
    make_plan(model, GraLoRAConfig(r=8, bias="all", modules_to_save=["lm_head"]), "default")
    assert snapshot(model) == before


def test_same_seed_gives_the_same_adapter():
    states = []
    for _ in range(2):
        model = llama()
        torch.manual_seed(5)
        states.append(inject(model, GraLoRAConfig(r=8)).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
