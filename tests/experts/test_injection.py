"""`target_parameters`: what is selected, what becomes of the model, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from expert_models import BOTH, experts_of, fill, injected, mixtral, tokens
from torch import nn

import gralora
from gralora.nn import ExpertWeights, GraLoRAExperts


def config(**settings: object) -> gralora.GraLoRAConfig:
    values = {"r": 8, "k": 2, "target_modules": (), "target_parameters": BOTH} | settings
    return gralora.GraLoRAConfig(**values)


def adapted(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, ExpertWeights) and module.adapters
    ]


def test_a_fresh_adapter_changes_nothing():
    model, ids = mixtral(), tokens()
    with torch.no_grad():
        want = model(ids).logits
        got = gralora.inject(model, config())(ids).logits
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_experts_start_with_factors_of_their_own():
    weights = experts_of(gralora.inject(mixtral(), config())).gate_up_proj
    A = weights.gralora_A["default"]
    assert A.shape == (4, 2, 16, 8)
    assert A.abs().max() <= 1 / 4 < A.abs().max() * 1.1
    assert not any(torch.equal(A[0], other) for other in A[1:])
    assert not weights.gralora_B["default"].any()


@pytest.mark.parametrize("start", ["gaussian", "orthogonal"])
def test_other_starts(start: str):
    model, ids = mixtral(), tokens()
    with torch.no_grad():
        want = model(ids).logits
        got = gralora.inject(model, config(init_weights=start))(ids).logits
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    factors = experts_of(model).down_proj.gralora_A["default"]
    assert not torch.equal(factors[0], factors[1])


def test_only_the_adapters_train():
    model = injected("mixtral")
    ids = tokens()
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".gralora_" in name), name
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_the_router_and_other_modules_are_the_models_own():
    model = mixtral()
    gate, attention = model.model.layers[0].mlp.gate, model.model.layers[0].self_attn
    experts = experts_of(model)
    gralora.inject(model, config())
    assert model.model.layers[0].mlp.gate is gate
    assert model.model.layers[0].self_attn is attention
    assert experts_of(model).base_layer is experts


def test_beside_linear_layers():
    model = gralora.inject(mixtral(), config(target_modules=["q_proj"]))
    fill(model)
    ids = tokens()
    model(ids, labels=ids).loss.backward()
    assert model.model.layers[1].self_attn.q_proj.gralora_A["default"].grad.any()
    assert experts_of(model, 1).down_proj.gralora_A["default"].grad.any()


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (
            {"target_parameters": ["down_proj"]},
            ["0.mlp.experts.down_proj", "1.mlp.experts.down_proj"],
        ),
        (
            {"target_parameters": ["model.layers.1.mlp.experts.gate_up_proj"]},
            ["1.mlp.experts.gate_up_proj"],
        ),
        (
            {"layers_to_transform": 1},
            ["1.mlp.experts.gate_up_proj", "1.mlp.experts.down_proj"],
        ),
        (
            {"exclude_modules": ["experts.down_proj", "layers.0.mlp.experts"]},
            ["1.mlp.experts.gate_up_proj"],
        ),
    ],
    ids=["end of a name", "full name", "one layer", "excluded"],
)
def test_selection(settings: dict[str, object], wanted: list[str]):
    model = gralora.inject(mixtral(), config(**settings))
    assert adapted(model) == [f"model.layers.{name}" for name in wanted]


def test_settings_of_single_parameters():
    settings = config(
        rank_pattern={"gate_up_proj": 16},
        k_pattern={"down_proj": 4},
        alpha_pattern={"down_proj": 5},
    )
    experts = experts_of(gralora.inject(mixtral(), settings))
    up, down = experts.gate_up_proj.adapters["default"], experts.down_proj.adapters["default"]
    assert (up.r, up.k_in, up.alpha) == (16, 2, 32)
    assert (down.r, down.k_in, down.alpha) == (8, 4, 5)


def test_switching_among_adapters():
    model, ids = injected("qwen-moe"), tokens()
    with torch.no_grad():
        first = model(ids).logits
        gralora.inject(model, config(r=4, target_parameters=["experts.down_proj"]), "second")
        fill(model)
        second = model(ids).logits
        gralora.set_adapter(model, "default")
        torch.testing.assert_close(model(ids).logits, first)
        gralora.set_adapter(model, ["default", "second"])
        both = model(ids).logits
        gralora.enable_adapters(model, False)
        frozen = model(ids).logits
        gralora.enable_adapters(model, True)
        gralora.delete_adapter(model, "second")
        gralora.set_adapter(model, "default")
        torch.testing.assert_close(model(ids).logits, first)
    results = (first, second, both, frozen)
    for place, one in enumerate(results):
        assert all((one - other).abs().max() > 1e-2 for other in results[place + 1 :])


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "pickle"],
)
def test_copies_are_independent(copied):
    model, ids = injected("mixtral"), tokens()
    other = copied(model)
    with torch.no_grad():
        want = model(ids).logits
        experts_of(other).base_layer.down_proj.zero_()
        torch.testing.assert_close(model(ids).logits, want)
        weights = experts_of(other).down_proj
        assert weights.weight is experts_of(other).base_layer.down_proj
        assert (other(ids).logits - want).abs().max() > 1e-2


def test_base_checkpoints_still_load():
    model, plain = injected("mixtral"), mixtral()
    result = model.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(".gralora_" in key for key in result.missing_keys)
    wanted = experts_of(plain).gate_up_proj
    assert torch.equal(experts_of(model).base_layer.gate_up_proj, wanted)


def test_gradient_checkpointing_gives_the_same_gradients():
    model, ids = injected("mixtral").train(), tokens()
    trained = [p for p in model.parameters() if p.requires_grad]
    want = torch.autograd.grad(model(ids, labels=ids).loss, trained)
    model.gradient_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    for parameter, gradient in zip(trained, want, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


REFUSED = {
    "no such parameter": (
        {"target_parameters": ["experts.w1"]},
        ValueError,
        r"inject: target_parameters must select a parameter of a module of the model, got "
        r"\['experts.w1'\] \(fused parameters of the model: model.layers.0.mlp.experts.gate_up",
    ),
    "a plain matrix": (
        {"target_parameters": ["q_proj.weight"]},
        ValueError,
        r"inject: a target parameter must have three dimensions, a matrix for each expert, got "
        r"model.layers.0.self_attn.q_proj.weight with \[32, 32\]",
    ),
    "a grid that does not fit": (
        {"k": 5, "r": 10},
        ValueError,
        r"inject: model.layers.0.mlp.experts.gate_up_proj: in_features must be divisible by k_in",
    ),
    "a part of the weight": (
        {"init_weights": "pissa"},
        TypeError,
        r"inject: init_weights='pissa' takes a part out of the weight, .* got the fused experts of "
        r"model.layers.0.mlp.experts.gate_up_proj",
    ),
    "a module instead of a parameter": (
        {"target_modules": ["experts"]},
        TypeError,
        "inject: a target must be a torch.nn.Linear",
    ),
}


@pytest.mark.parametrize(("settings", "kind", "text"), REFUSED.values(), ids=REFUSED)
def test_refused(settings: dict[str, object], kind: type[Exception], text: str):
    model = mixtral()
    before = dict(model.named_modules())
    with pytest.raises(kind, match=text):
        gralora.inject(model, config(**settings))
    assert dict(model.named_modules()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_one_text_is_no_list_of_parameters():
    with pytest.raises(TypeError, match=r"target_parameters must be a sequence of str, got 'a' "):
        gralora.GraLoRAConfig(target_parameters="a")


def test_neither_modules_nor_parameters():
    with pytest.raises(ValueError, match="target_modules must name at least one module"):
        gralora.GraLoRAConfig(target_modules=())


def test_entries_that_match_nothing_are_named():
    with pytest.warns(UserWarning, match="matched nothing: target_parameters: 'experts.w1'"):
        gralora.inject(mixtral(), config(target_parameters=[*BOTH, "experts.w1"]))


def test_an_integer_parameter_is_refused():
    model = mixtral()
    packed = nn.Parameter(torch.zeros(4, 8, 8, dtype=torch.int8), requires_grad=False)
    experts_of(model).down_proj = packed
    with pytest.raises(TypeError, match="down_proj: dtype must be float64, float32, bfloat16"):
        gralora.inject(model, config(target_parameters=["experts.down_proj"]))


def test_a_module_without_experts_is_not_wrapped():
    with pytest.raises(TypeError, match="needs a module with a floating parameter of three dim"):
        GraLoRAExperts(nn.Linear(4, 4))


def test_expert_parallel_modules_are_refused():
    model = mixtral()
    experts_of(model)._is_expert_parallel = True
    with pytest.raises(ValueError, match="must have all experts, got "):
        gralora.inject(model, config())
