"""merge_and_unload(): the model that comes back, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from injection_models import Stack, adapted, llama, llama_classifier, tokens
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import gralora
from gralora.injection.record import adapter_records
from gralora.injection.saved_module import SavedModule
from gralora.nn import GraLoRALinear

Config = gralora.GraLoRAConfig


def _randomise(model: nn.Module, seed: int = 3) -> None:
    """Gives every adapter an effect: fresh ones have none."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, GraLoRALinear):
            for name in module.adapters:
                module.gralora_B[name].data.normal_(std=0.2)
                if name in module.lora_B:
                    module.lora_B[name].data.normal_(std=0.2)
        if isinstance(module, SavedModule):
            for parameter in module.modules_to_save.parameters():
                parameter.data.add_(torch.randn_like(parameter) * 0.1)


def _injected(build: Callable[..., nn.Module] = llama, **settings: Any) -> nn.Module:
    model = build()
    gralora.inject(model, Config(**{"r": 4, "k": 2, **settings}))
    _randomise(model)
    return model.eval()


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).logits


SETTINGS: dict[str, dict[str, Any]] = {
    "square": {},
    "lora": {"k": 1},
    "rectangular": {"k": (4, 2)},
    "hybrid": {"hybrid_r": 3},
    "rslora": {"use_rslora": True, "alpha": 3},
    "dropout": {"dropout": 0.5},
    "some_layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "saved_head": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_merged_model_computes_what_the_adapted_one_did(
    settings: dict[str, Any], x: Tensor
) -> None:
    model = _injected(**settings)
    before = _logits(model, x)
    base = _logits(llama().eval(), x)
    merged = gralora.merge_and_unload(model)
    torch.testing.assert_close(_logits(merged, x), before, rtol=1e-4, atol=1e-5)
    assert (before - base).abs().max() > 1e-2


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_merged_model_is_of_the_base_models_own_modules(settings: dict[str, Any]) -> None:
    merged = gralora.merge_and_unload(_injected(**settings))
    fresh = llama()
    assert [(name, type(module)) for name, module in merged.named_modules()] == [
        (name, type(module)) for name, module in fresh.named_modules()
    ]
    assert merged.state_dict().keys() == fresh.state_dict().keys()
    assert adapter_records(merged) == {}
    assert all(not module._forward_hooks for module in merged.modules())


def test_weights_are_the_reference_update_of_the_base() -> None:
    model = _injected(hybrid_r=3)
    layer = model.model.layers[0].mlp.up_proj
    A, B = layer.gralora_A["default"].double(), layer.gralora_B["default"].double()
    n, m, s = 16, 24, 2
    delta = layer.lora_B["default"].double() @ layer.lora_A["default"].double()
    for i in range(2):
        for j in range(2):
            block = B[i, j * s : (j + 1) * s].T @ A[j, :, i * s : (i + 1) * s].T
            delta[i * m : (i + 1) * m, j * n : (j + 1) * n] += block
    expected = layer.weight.double() + layer.adapters["default"].scaling * delta
    merged = gralora.merge_and_unload(model)
    torch.testing.assert_close(merged.model.layers[0].mlp.up_proj.weight.double(), expected)


def test_weights_stay_where_they_were_and_nothing_is_kept() -> None:
    model = _injected()
    storage = {name: value.data_ptr() for name, value in llama_weights(model).items()}
    merged = gralora.merge_and_unload(model)
    assert merged is model
    assert {name: value.data_ptr() for name, value in llama_weights(merged).items()} == storage


def llama_weights(model: nn.Module) -> dict[str, Tensor]:
    names = llama().state_dict()
    return {name: value for name, value in model.state_dict().items() if name in names}


def test_bias_of_a_layer_and_training_mode_survive() -> None:
    model = Stack()
    gralora.inject(model, Config(r=4, k=2, target_modules=["down"], bias="gralora_only"))
    biases = [block.down.bias for block in model.body["blocks"]]
    biases[1].data.fill_(7)
    merged = gralora.merge_and_unload(model)
    down = merged.body["blocks"][1].down
    assert type(down) is nn.Linear
    assert down.bias is biases[1]
    assert down.training
    assert down.weight.shape == (8, 16)


def test_chosen_adapters_are_merged_and_the_others_dropped(x: Tensor) -> None:
    model = _injected()
    gralora.inject(model, Config(r=2, k=1, target_modules=["q_proj"]), "second")
    _randomise(model, seed=4)
    gralora.set_adapter(model, "second")
    expected = _logits(model.eval(), x)
    gralora.set_adapter(model, "default")
    merged = gralora.merge_and_unload(model, adapter_names=["second"])
    torch.testing.assert_close(_logits(merged, x), expected, rtol=1e-4, atol=1e-5)
    assert not adapted(merged)


def test_several_adapters_are_added_up(x: Tensor) -> None:
    model = _injected()
    gralora.inject(model, Config(r=2, k=1, target_modules=["q_proj"]), "second")
    _randomise(model, seed=4)
    gralora.set_adapter(model, ["default", "second"])
    expected = _logits(model.eval(), x)
    merged = gralora.merge_and_unload(model)
    torch.testing.assert_close(_logits(merged, x), expected, rtol=1e-4, atol=1e-5)


def test_saved_module_becomes_the_copy_of_the_merged_adapter() -> None:
    model = _injected(llama_classifier, modules_to_save=["score"])
    trained = model.score.modules_to_save["default"].weight
    merged = gralora.merge_and_unload(model)
    assert type(merged.score) is nn.Linear
    assert merged.score.weight is trained


def test_saved_module_of_an_adapter_that_is_not_merged_becomes_the_original() -> None:
    model = _injected(llama_classifier, modules_to_save=["score"])
    original = model.score.original_module.weight
    gralora.inject(model, Config(r=4, k=2, target_modules=["q_proj"]), "second")
    merged = gralora.merge_and_unload(model, adapter_names="second")
    assert merged.score.weight is original


def test_tied_saved_modules_stay_tied() -> None:
    model = _injected(lambda: llama(tie_word_embeddings=True), modules_to_save=["lm_head"])
    merged = gralora.merge_and_unload(model)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_layers_put_in_by_hand_are_merged() -> None:
    model = Stack()
    model.head = GraLoRALinear.from_linear(model.head, r=4, k=2)
    _randomise(model)
    x = torch.randn(3, 16)
    expected = model(x)
    merged = gralora.merge_and_unload(model)
    assert type(merged.head) is nn.Linear
    torch.testing.assert_close(merged(x), expected)


def test_a_model_that_is_one_layer_becomes_a_linear() -> None:
    layer = GraLoRALinear(16, 8, r=4, k=2)
    _randomise(layer)
    x = torch.randn(3, 16)
    expected = layer(x)
    merged = gralora.merge_and_unload(layer)
    assert type(merged) is nn.Linear
    torch.testing.assert_close(merged(x), expected)


def test_compiled_model_comes_back_bare() -> None:
    model = _injected()
    merged = gralora.merge_and_unload(torch.compile(model))  # type: ignore[arg-type]
    assert merged is model
    assert not adapted(merged)


def test_a_layer_merged_already_is_not_merged_twice(x: Tensor) -> None:
    model = _injected()
    expected = _logits(model, x)
    model.model.layers[0].self_attn.q_proj.merge()
    merged = gralora.merge_and_unload(model)
    torch.testing.assert_close(_logits(merged, x), expected, rtol=1e-4, atol=1e-5)


def test_merged_model_can_be_injected_again(x: Tensor) -> None:
    merged = gralora.merge_and_unload(_injected())
    expected = _logits(merged, x)
    again = gralora.inject(merged, Config(r=4, k=2))
    assert torch.equal(_logits(again, x), expected)


@pytest.mark.parametrize("shown", [True, False])
def test_progressbar_is_shown_where_it_is_asked_for(
    shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    gralora.merge_and_unload(_injected(), progressbar=shown)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ("merging" in printed.err) == shown


def test_model_injected_as_a_part_of_another_can_be_injected_again() -> None:
    model = llama()
    gralora.inject(model.model, Config(r=4, k=2))
    gralora.merge_and_unload(model)
    assert adapter_records(model.model) == {}
    gralora.inject(model.model, Config(r=4, k=2))


def test_a_model_without_adapters_is_left_alone() -> None:
    model = llama()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    merged = gralora.merge_and_unload(model)
    assert merged is model
    assert all(torch.equal(state[name], value) for name, value in merged.state_dict().items())


def _snapshot(model: nn.Module) -> tuple[dict[str, type[nn.Module]], dict[str, Tensor]]:
    modules = {name: type(module) for name, module in model.named_modules()}
    return modules, {name: value.clone() for name, value in model.state_dict().items()}


def _assert_unchanged(
    model: nn.Module, before: tuple[dict[str, type[nn.Module]], dict[str, Tensor]]
) -> None:
    modules, state = _snapshot(model)
    assert modules == before[0]
    assert state.keys() == before[1].keys()
    for name, value in state.items():
        torch.testing.assert_close(value, before[1][name], rtol=0, atol=0, equal_nan=True)


def test_tied_weight_is_refused_before_anything_changes() -> None:
    model = llama(tie_word_embeddings=True)
    gralora.inject(model, Config(r=4, k=2, target_modules=["q_proj", "lm_head"]))
    _randomise(model)
    before = _snapshot(model)
    message = r"lm_head\.weight and model\.embed_tokens\.weight|embed_tokens\.weight and lm_head"
    with pytest.raises(RuntimeError, match=message):
        gralora.merge_and_unload(model)
    _assert_unchanged(model, before)


def test_weight_that_is_a_view_of_a_buffer_is_refused() -> None:
    model = Stack()
    model.register_buffer("pool", torch.zeros(200))
    model.head.weight = nn.Parameter(model.pool[50:114].view(4, 16))
    gralora.inject(model, Config(r=4, k=2, target_modules=["head"]))
    with pytest.raises(RuntimeError, match=r"head\.weight and pool|pool and head\.weight"):
        gralora.merge_and_unload(model)


def test_tied_weight_of_a_layer_that_is_not_merged_is_no_obstacle() -> None:
    model = llama(tie_word_embeddings=True)
    gralora.inject(model, Config(r=4, k=2, target_modules=["q_proj"]))
    merged = gralora.merge_and_unload(model)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_weight_that_a_layer_of_another_model_has_is_refused() -> None:
    model = _injected(Stack)
    other = GraLoRALinear.from_linear(nn.Linear(8, 16), r=4)
    other.weight = model.body["blocks"][0].up.weight
    before = _snapshot(model)
    with pytest.raises(
        RuntimeError, match=r"body\.blocks\.0\.up\.weight and the weight of an adapted"
    ):
        gralora.merge_and_unload(model)
    _assert_unchanged(model, before)


def test_sharded_model_is_refused(mesh: Any) -> None:
    model = fully_shard(_injected(Stack, modules_to_save=["norm"]), mesh=mesh)
    before = {name: value.full_tensor().clone() for name, value in model.state_dict().items()}
    message = (
        r"^merge_and_unload: model must not be sharded, got body\.blocks\.0\.down\.weight as a"
    )
    with pytest.raises(RuntimeError, match=message):
        gralora.merge_and_unload(model)
    assert all(torch.equal(v.full_tensor(), before[n]) for n, v in model.state_dict().items())
    assert adapted(model)


def test_partitioned_weight_is_refused_before_anything_changes() -> None:
    model = _injected(Stack)
    model.head.weight.data = torch.empty(0)
    before = _snapshot(model)
    message = r"^merge_and_unload: model must not be sharded, got head\.weight as \[0\]"
    with pytest.raises(RuntimeError, match=message):
        gralora.merge_and_unload(model)
    _assert_unchanged(model, before)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_active_adapters_are_merged_also_while_they_are_off(
    settings: dict[str, Any], x: Tensor
) -> None:
    model = _injected(**settings)
    before = _logits(model, x)
    gralora.enable_adapters(model, False)
    merged = gralora.merge_and_unload(model)
    torch.testing.assert_close(_logits(merged, x), before, rtol=1e-4, atol=1e-5)


def test_saved_modules_in_containers_are_unwrapped_at_every_place() -> None:
    model = nn.ModuleDict({"parts": nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))})
    model["list"] = nn.ModuleList([model["parts"][1]])
    gralora.inject(model, Config(r=4, modules_to_save=["parts.1"]))
    assert model["list"][0] is model["parts"][1]
    trained = model["parts"][1].modules_to_save["default"]
    gralora.merge_and_unload(model)
    assert model["parts"][1] is trained
    assert model["list"][0] is trained


def test_safe_merge_changes_nothing_where_one_layer_would_not_be_finite() -> None:
    model = _injected()
    model.model.layers[1].mlp.down_proj.gralora_B["default"].data[0, 0, 0] = float("inf")
    before = _snapshot(model)
    with pytest.raises(
        ValueError, match=r"^merge_and_unload: model\.layers\.1\.mlp\.down_proj: .*Inf or NaN"
    ):
        gralora.merge_and_unload(model, safe_merge=True)
    _assert_unchanged(model, before)


def test_safe_merge_gives_the_same_weights() -> None:
    one, other = _injected(), _injected()
    gralora.merge_and_unload(one)
    gralora.merge_and_unload(other, safe_merge=True)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_adapter_that_is_merged_but_not_asked_for_is_refused() -> None:
    model = _injected()
    gralora.inject(model, Config(r=4, k=2, target_modules=["q_proj"]), "second")
    for layer in model.modules():
        if isinstance(layer, GraLoRALinear):
            layer.merge(adapter_names="default")
    before = _snapshot(model)
    with pytest.raises(RuntimeError, match=r"may be merged already, got \['default'\] in"):
        gralora.merge_and_unload(model, adapter_names="second")
    _assert_unchanged(model, before)


def test_two_adapters_that_save_one_module_are_refused() -> None:
    model = _injected(llama_classifier, modules_to_save=["score"])
    config = Config(r=4, k=2, target_modules=["q_proj"], modules_to_save=["score"])
    gralora.inject(model, config, "second")
    with pytest.raises(ValueError, match=r"got \['default', 'second'\], which all save score"):
        gralora.merge_and_unload(model, adapter_names=["default", "second"])


def test_unknown_name_lists_those_present() -> None:
    with pytest.raises(ValueError, match=r"no adapter is named 'x' \(present: 'default'\)"):
        gralora.merge_and_unload(_injected(), adapter_names="x")


@pytest.mark.parametrize("names", [3, [3], {"default"}], ids=["int", "ints", "set"])
def test_names_of_another_kind_are_refused(names: Any) -> None:
    with pytest.raises(TypeError, match="adapter_names must be a str, a sequence of str or None"):
        gralora.merge_and_unload(_injected(), adapter_names=names)


def test_meta_weights_are_refused() -> None:
    with torch.device("meta"):
        model = Stack()
    gralora.inject(model, Config(r=4, k=2, target_modules=["head"]))
    with pytest.raises(RuntimeError, match=r"^merge_and_unload: head: .*meta device"):
        gralora.merge_and_unload(model)


def test_torchs_encoder_gets_its_fused_path_back() -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0), 1
    ).eval()
    model = nn.ModuleDict({"encoder": encoder})
    settings = encoder.layers[0].activation_relu_or_gelu, encoder.use_nested_tensor
    gralora.inject(model, Config(r=4, k=2, target_modules=["linear1"]))
    assert encoder.layers[0].activation_relu_or_gelu == 0
    gralora.merge_and_unload(model)
    assert (encoder.layers[0].activation_relu_or_gelu, encoder.use_nested_tensor) == settings


def test_greedy_continuations_agree() -> None:
    model = _injected()
    generate = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(tokens(1, 4), **generate)
    assert torch.equal(gralora.merge_and_unload(model).generate(tokens(1, 4), **generate), expected)
