"""`adapter_names`: each row of a batch with its own adapter, for LoRA as for GraLoRA."""

from __future__ import annotations

import peft
import pytest
import torch
from accelerate_models import (
    BASES,
    CONFIGS,
    TARGETS,
    accelerated_copy,
    decoder,
    gralora,
    layer_of,
    lora,
    network,
    normal,
    tokens,
)
from torch import nn
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

from gralora.integrations.peft import accelerate, restore

NAMES = ["second", "__base__", "default", "second", "default"]


def with_second(model, config, **options):
    """The same model with a second adapter, evaluating."""
    torch.manual_seed(6)
    model.add_adapter("second", config(**options))
    return model.eval()


@pytest.fixture(params=CONFIGS)
def config(request):
    """LoRA and GraLoRA in turn."""
    return CONFIGS[request.param]


@pytest.fixture
def language_model(config):
    """A decoder with two adapters, accelerated."""
    targets = TARGETS["llama"]
    model = decoder("llama", config)
    # The second adapter leaves some layers alone.
    return accelerate(with_second(model, config, r=2, target_modules=targets[:2]))


def one_by_one(model, names, compute):
    """`compute(row)` for every row under the adapter of its name alone."""
    results = []
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                results.append(compute(row))
        else:
            model.set_adapter(name)
            results.append(compute(row))
    model.set_adapter("default")
    return torch.cat(results)


def test_forward(language_model):
    ids = tokens(len(NAMES))
    expected = one_by_one(
        language_model, NAMES, lambda row: language_model(input_ids=ids[row : row + 1]).logits
    )
    found = language_model(input_ids=ids, adapter_names=NAMES).logits
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, language_model(input_ids=ids).logits)


@pytest.mark.parametrize("name", ["default", "second", "__base__"])
def test_forward_with_one_name_for_all(language_model, name):
    ids = tokens(2)
    expected = one_by_one(
        language_model, [name] * 2, lambda row: language_model(input_ids=ids[row : row + 1]).logits
    )
    found = language_model(input_ids=ids, adapter_names=[name] * 2).logits
    torch.testing.assert_close(found, expected)


def test_forward_agrees_with_peft_for_lora():
    theirs = with_second(decoder("llama", lora), lora, target_modules=TARGETS["llama"], r=2)
    ours = accelerated_copy(theirs)
    ids = tokens(len(NAMES))
    torch.testing.assert_close(
        ours(input_ids=ids, adapter_names=NAMES).logits,
        theirs(input_ids=ids, adapter_names=NAMES).logits,
    )


GENERATIONS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams by configuration": {"generation_config": GenerationConfig(num_beams=2, max_length=8)},
}


@pytest.mark.parametrize("options", GENERATIONS.values(), ids=GENERATIONS)
def test_generate(options):
    targets = TARGETS["llama"]
    model = decoder("llama", gralora)
    model = accelerate(with_second(model, gralora, r=2, target_modules=targets))
    ids = tokens(len(NAMES))
    options = {"min_length": 8, "max_length": 8, "do_sample": False, **options}
    expected = one_by_one(
        model, NAMES, lambda row: model.generate(input_ids=ids[row : row + 1], **options)
    )
    found = model.generate(input_ids=ids, adapter_names=NAMES, **options)
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, model.generate(input_ids=ids, **options))


def by_position(model, ids, **options):
    """Generation with the configuration as the second argument."""
    return model.generate(ids, GenerationConfig(**options), **ADAPTERS_OF[len(ids)])


def by_model(model, ids, **options):
    """Generation by the model's own configuration."""
    model.generation_config.update(**options)
    return model.generate(input_ids=ids, **ADAPTERS_OF[len(ids)])


# One row alone runs under the active adapter.
ADAPTERS_OF = {1: {}, len(NAMES): {"adapter_names": NAMES}}


@pytest.mark.parametrize("generate", [by_position, by_model], ids=["position", "model"])
def test_generate_by_beams_that_are_configured_elsewhere(generate):
    model = decoder("llama", gralora)
    model = accelerate(with_second(model, gralora, r=2, target_modules=TARGETS["llama"]))
    ids = tokens(len(NAMES))
    options = {"num_beams": 3, "min_length": 8, "max_length": 8, "do_sample": False}
    expected = one_by_one(model, NAMES, lambda row: generate(model, ids[row : row + 1], **options))
    torch.testing.assert_close(generate(model, ids, **options), expected)


def test_forward_ignores_the_beams_of_generation(gralora_decoder):
    ids = tokens(len(NAMES))
    expected = gralora_decoder(input_ids=ids, adapter_names=NAMES).logits
    gralora_decoder.generation_config.num_beams = 3
    found = gralora_decoder(input_ids=ids, adapter_names=NAMES).logits
    assert torch.equal(found, expected)


def test_generation_leaves_nothing_on_the_model(gralora_decoder):
    base = gralora_decoder.get_base_model()
    before = sorted(base.__dict__)
    options = {"num_beams": 2, "max_new_tokens": 2, "adapter_names": ["default", "second"]}
    gralora_decoder.generate(input_ids=tokens(2), **options)
    assert sorted(base.__dict__) == before
    with pytest.raises(ValueError, match="got 2 names and 4 rows"):
        gralora_decoder.generate(input_ids=tokens(2), **options | {"adapter_names": ["default"]})
    assert sorted(base.__dict__) == before


def test_generate_several_answers():
    model = accelerate(with_second(decoder("llama", gralora), gralora, target_modules=["q_proj"]))
    found = model.generate(
        input_ids=tokens(2),
        adapter_names=["second", "default"],
        num_return_sequences=2,
        do_sample=True,
        min_length=8,
        max_length=8,
    )
    assert found.shape == (4, 8)


def test_generate_by_beams_behind_an_encoder():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(0)
    base = T5ForConditionalGeneration(
        T5Config(vocab_size=48, decoder_start_token_id=0, **sizes)
    ).eval()
    torch.manual_seed(1)
    model = peft.get_peft_model(base, gralora(target_modules=["q", "v"]))
    model = accelerate(with_second(model, gralora, target_modules=["q", "v"]))
    ids = tokens(len(NAMES))
    options = {"num_beams": 3, "min_length": 6, "max_length": 6, "do_sample": False}
    expected = one_by_one(
        model, NAMES, lambda row: model.generate(input_ids=ids[row : row + 1], **options)
    )
    found = model.generate(input_ids=ids, adapter_names=NAMES, **options)
    torch.testing.assert_close(found, expected)


def test_modules_to_save_follow_the_rows():
    options = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    model = accelerate(with_second(decoder("llama", gralora, **options), gralora, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save.second" in name:
                parameter.mul_(2)
    ids = tokens(len(NAMES))
    expected = one_by_one(model, NAMES, lambda row: model(input_ids=ids[row : row + 1]).logits)
    torch.testing.assert_close(model(input_ids=ids, adapter_names=NAMES).logits, expected)


@pytest.fixture
def one_head():
    """An accelerated decoder of which "default" alone trains the head."""
    model = decoder("llama", gralora, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = accelerate(with_second(model, gralora, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save.default" in name:
                parameter.mul_(2)
    return model


@pytest.mark.parametrize("names", [NAMES, ["second"] * 2], ids=["both", "the one without"])
@pytest.mark.parametrize("active", ["default", "second"])
def test_module_that_one_adapter_saves(one_head, names, active):
    ids = tokens(len(names))
    expected = one_by_one(
        one_head, names, lambda row: one_head(input_ids=ids[row : row + 1]).logits
    )
    one_head.set_adapter(active)
    torch.testing.assert_close(one_head(input_ids=ids, adapter_names=names).logits, expected)


def test_hooks_are_gone_afterwards(language_model):
    ids = tokens(len(NAMES))
    before = language_model(input_ids=ids).logits
    language_model(input_ids=ids, adapter_names=NAMES)
    with pytest.raises(ValueError, match="name"):
        language_model(input_ids=ids, adapter_names=NAMES[:2])
    if language_model.peft_type == "GRALORA":
        assert not any(module._forward_pre_hooks for module in language_model.modules())
        torch.testing.assert_close(language_model(input_ids=ids).logits, before)


def test_layer_gives_gradients_by_row(config):
    model = with_second(network(config, dtype=torch.float64), config, target_modules=["layer"])
    model.base_model.set_adapter(["default", "second"])
    layer = layer_of(accelerate(model))
    x = normal(5, 12, dtype=torch.float64).requires_grad_()
    layer(x, adapter_names=NAMES).sum().backward()
    found = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    for parameter in layer.parameters():
        parameter.grad = None
    rows = [row for row, name in enumerate(NAMES) if name == "second"]
    model.set_adapter("second")
    layer(x.detach()[rows]).sum().backward()
    expected = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    assert expected
    assert expected.keys() < found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    base = layer.base_layer.weight.sum(0)
    torch.testing.assert_close(x.grad[NAMES.index("__base__")], base)


def test_variants_of_lora_are_mixed_by_peft():
    theirs = with_second(network(lora), lora, target_modules=["layer"], use_rslora=True)
    layer_of(theirs).lora_dropout["second"] = nn.AlphaDropout(0.5).eval()
    ours = accelerated_copy(theirs)
    x = normal(5, 12)
    torch.testing.assert_close(
        layer_of(ours)(x, adapter_names=NAMES), layer_of(theirs)(x, adapter_names=NAMES)
    )


def test_gralora_that_operators_cannot_take_is_refused():
    model = accelerate(with_second(network(gralora), gralora, target_modules=["layer"]))
    layer_of(model).gralora_dropout["second"] = nn.AlphaDropout(0.5).eval()
    with pytest.raises(NotImplementedError, match="adapter second: dropout is a AlphaDropout"):
        layer_of(model)(normal(5, 12), adapter_names=NAMES)


def test_disabled_adapters_stay_disabled(config):
    model = accelerate(with_second(network(config), config, target_modules=["layer"]))
    layer = layer_of(model)
    layer.enable_adapters(False)
    x = normal(5, 12)
    torch.testing.assert_close(layer(x, adapter_names=NAMES), layer.base_layer(x))


@pytest.fixture
def gralora_decoder():
    """An accelerated decoder with the adapters default and second."""
    model = decoder("llama", gralora)
    return accelerate(with_second(model, gralora, target_modules=TARGETS["llama"]))


def test_training_mode_is_refused(gralora_decoder):
    with pytest.raises(ValueError, match="evaluation mode only"):
        gralora_decoder.train()(input_ids=tokens(2), adapter_names=["default", "second"])


def test_unknown_name_is_refused(gralora_decoder):
    message = r"must name adapters of the model or '__base__', got \['third'\] .*default.*second"
    with pytest.raises(ValueError, match=message):
        gralora_decoder(input_ids=tokens(2), adapter_names=["default", "third"])


def test_another_number_of_names_is_refused(gralora_decoder):
    with pytest.raises(ValueError, match="got 1 names and 2 rows"):
        gralora_decoder(input_ids=tokens(2), adapter_names=["default"])


def test_a_string_is_refused(gralora_decoder):
    with pytest.raises(TypeError, match="must be a list of str, got str 'default'"):
        gralora_decoder(input_ids=tokens(2), adapter_names="default")


def test_merged_adapters_are_refused(gralora_decoder):
    gralora_decoder.merge_adapter()
    with pytest.raises(ValueError, match=r"\['default'\] are merged"):
        gralora_decoder(input_ids=tokens(2), adapter_names=["default", "second"])


@pytest.mark.parametrize("base", BASES)
def test_restore_takes_it_away(base):
    model = accelerate(decoder(base, gralora, fan_in_fan_out=base == "gpt2")).eval()
    assert hasattr(type(model.base_model), "_enable_peft_forward_hooks")
    assert not hasattr(type(restore(model).base_model), "_enable_peft_forward_hooks")
