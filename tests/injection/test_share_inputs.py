"""Projections of whole models that read one input are computed together, and come out the same."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from injection_models import VOCABULARY, llama, randomise, tokens
from torch import nn

import gralora
from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject
from gralora.injection.shared_inputs import SIBLINGS, share_inputs
from gralora.nn import GraLoRALinear

CONFIG = GraLoRAConfig(r=8)


def qwen2():
    """Biases on q, k and v."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCABULARY, **sizes, **heads)).train()


def bart():
    """An encoder, and a decoder with cross attentions."""
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=VOCABULARY, d_model=32, dropout=0.0, max_position_embeddings=32,
        encoder_layers=1, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
        encoder_attention_heads=4, decoder_attention_heads=4,
    )  # fmt: skip
    return BartForConditionalGeneration(config).train()


def t5():
    """Gates under their own names, and cross attentions."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4,
        feed_forward_proj="gated-gelu", dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).train()


def bert():
    """Attentions that name their projections query, key and value."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForMaskedLM(config).train()


# How many groups there are, and what a forward pass computes once it is known who reads what.
MODELS = {
    "llama": (llama, 4, [3, 2] * 2),
    "qwen2": (qwen2, 4, [3, 2] * 2),
    "bert": (bert, 2, [3] * 2),
    "bart": (bart, 5, [3, 3, 2, 3, 2]),
    "t5": (t5, 5, [3, 2, 3, 2, 2]),
}
ALL = pytest.mark.parametrize(("build", "count", "sizes"), MODELS.values(), ids=MODELS)


@pytest.fixture
def group_sizes(monkeypatch):
    """How many layers each call of the operator for groups computed."""
    sizes = []
    compute = gralora.functional.gralora_linear_group

    def counted(x, weights, *args, **kwargs):
        sizes.append(len(weights))
        return compute(x, weights, *args, **kwargs)

    monkeypatch.setattr(gralora.functional, "gralora_linear_group", counted)
    return sizes


def in_double(build):
    """The model twice, computed together and each layer by itself."""
    model = randomise(inject(build().double(), CONFIG, adapter_dtype=torch.float64))
    alone = copy.deepcopy(model)
    share_inputs(alone, groups=())
    share_inputs(model)
    return model, alone


def step(model, x):
    """Loss and gradients of one step, those of the embedded tokens too."""
    model.zero_grad()
    embedded = []

    def note(module, args, output):
        embedded.append(output.requires_grad_())
        output.retain_grad()

    vocabularies = [
        module
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings == VOCABULARY
    ]
    handles = [module.register_forward_hook(note) for module in vocabularies]
    loss = model(input_ids=x, labels=x).loss
    for handle in handles:
        handle.remove()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    inputs = {f"x{i}": output.grad for i, output in enumerate(embedded)}
    return {"loss": loss.detach(), **inputs, **gradients}


@ALL
def test_steps_are_those_of_the_same_model_with_each_layer_alone(build, count, sizes, group_sizes):
    model, alone = in_double(build)
    x = tokens()
    expected = step(alone, x)
    assert group_sizes == []
    for _ in range(4):
        del group_sizes[:]
        actual = step(model, x)
        for name, value in expected.items():
            assert value is not None, name
            torch.testing.assert_close(actual[name], value, rtol=1e-9, atol=1e-9, msg=name)
    assert group_sizes == sizes


@ALL
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
def test_steps_with_gradient_checkpointing(build, count, sizes, reentrant, group_sizes) -> None:
    model, alone = in_double(build)
    x = tokens()
    expected = step(alone, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for _ in range(6):
            del group_sizes[:]
            actual = step(model, x)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-9, atol=1e-9, msg=name)
    # Each twice, and as often in the pass that is repeated.
    assert sorted(group_sizes) == sorted(2 * sizes)


@ALL
def test_inject_groups_the_siblings_it_knows(build, count, sizes) -> None:
    model = build()
    before = [name for name, _ in model.named_modules()]
    inject(model, CONFIG)
    names = [name for name, _ in model.named_modules()]
    assert set(before) <= set(names)
    keys = list(model.state_dict())
    groups = {id(m._shared_input) for m in model.modules() if getattr(m, "_shared_input", None)}
    assert len(groups) == count
    assert share_inputs(model) == count
    assert share_inputs(model, groups=()) == 0
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == names


def test_inject_leaves_layers_alone_where_it_is_told_to(x, group_sizes) -> None:
    model = inject(llama(), CONFIG, share_inputs=False)
    model(x)
    assert group_sizes == []
    inject(model, CONFIG, "second")
    model(x)
    assert group_sizes == [3, 2] * 2
    inject(model, CONFIG, "third", share_inputs=False)
    model(x)
    assert group_sizes == [3, 2] * 2


def test_loaded_adapters_are_computed_together_unless_told_otherwise(tmp_path, x, group_sizes):
    model = randomise(inject(llama(), CONFIG)).eval()
    gralora.save_adapter(model, tmp_path)
    expected = model(x).logits
    del group_sizes[:]
    assert torch.equal(gralora.load_adapter(llama(), tmp_path).eval()(x).logits, expected)
    assert group_sizes == [3, 2] * 2
    alone = gralora.load_adapter(llama(), tmp_path, share_inputs=False).eval()
    torch.testing.assert_close(alone(x).logits, expected)
    assert group_sizes == [3, 2] * 2


@pytest.mark.parametrize(
    ("targets", "sizes"),
    [
        (["q_proj", "v_proj"], [2, 2]),
        (["v_proj", "up_proj"], []),
        (["gate_proj", "up_proj"], [2] * 2),
    ],
    ids=["q-and-v", "one-of-each", "gate-and-up"],
)
def test_those_that_are_adapted_are_computed_together(targets, sizes, x, group_sizes) -> None:
    inject(llama(), GraLoRAConfig(r=8, target_modules=targets))(x)
    assert group_sizes == sizes


def test_a_further_adapter_of_other_layers_groups_anew(x, group_sizes) -> None:
    model = inject(llama(), GraLoRAConfig(r=8, target_modules=["q_proj", "v_proj"]))
    inject(model, GraLoRAConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj"]), "second")
    model(x)
    assert group_sizes == [3, 3]
    gralora.set_adapter(model, "default")
    model(x)
    # Here k has no active adapter.
    assert group_sizes == [3, 3]


def test_generation_with_a_cache_gives_the_same_tokens(group_sizes) -> None:
    model, alone = in_double(llama)
    settings = {"max_new_tokens": 8, "do_sample": False, "use_cache": True}
    prompt = tokens()
    with torch.no_grad():
        expected = alone.eval().generate(prompt, **settings)
        assert group_sizes == []
        actual = model.eval().generate(prompt, **settings)
    assert torch.equal(actual, expected)
    assert group_sizes == [3, 2] * 2 * 8


def test_generation_of_an_encoder_and_a_decoder_gives_the_same_tokens() -> None:
    model, alone = in_double(bart)
    settings = {"max_new_tokens": 8, "do_sample": False, "num_beams": 2}
    with torch.no_grad():
        for _ in range(3):
            expected = alone.eval().generate(tokens(), **settings)
            assert torch.equal(model.eval().generate(tokens(), **settings), expected)


def test_autocast_and_a_bfloat16_base(x, group_sizes) -> None:
    model = randomise(inject(llama().bfloat16(), CONFIG))
    alone = copy.deepcopy(model)
    share_inputs(alone, groups=())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = model(x).logits, alone(x).logits
    torch.testing.assert_close(actual, expected, rtol=0.1, atol=0.1)
    assert group_sizes == [3, 2] * 2


def test_merging_unmerging_and_unloading_between_passes(x) -> None:
    model, alone = in_double(llama)
    expected = alone(x).logits
    layers = [module for module in model.modules() if isinstance(module, GraLoRALinear)]
    torch.testing.assert_close(model(x).logits, expected)
    for layer in layers[::2]:
        layer.merge()
    torch.testing.assert_close(model(x).logits, expected)
    for layer in layers[::2]:
        layer.unmerge()
    assert torch.equal(model(x).logits, model(x).logits)
    torch.testing.assert_close(gralora.merge_and_unload(model)(x).logits, expected)


def test_widths_that_differ_are_not_put_together() -> None:
    attention = nn.ModuleDict({"to_q": nn.Linear(16, 8), "to_k": nn.Linear(24, 8)})
    attention["to_v"] = nn.Linear(24, 8)
    model = inject(nn.ModuleDict({"attention": attention}), GraLoRAConfig(r=4))
    assert share_inputs(model) == 1
    assert model["attention"]["to_q"]._shared_input is None
    assert model["attention"]["to_k"]._shared_input is model["attention"]["to_v"]._shared_input


def test_a_layer_under_two_names_is_one_member() -> None:
    layer = nn.Linear(16, 8)
    model = nn.ModuleDict({"query": layer, "key": layer, "value": nn.Linear(16, 8)})
    inject(model, GraLoRAConfig(r=4))
    assert share_inputs(model) == 1
    x = torch.randn(3, 16)
    outputs = [model[name](x) for name in ("query", "key", "value")]
    assert torch.equal(outputs[0], outputs[1])
    assert model["query"]._shared_input.size == 2


BAD = {
    "text": ("q_proj", TypeError, "groups must be a sequence of groups"),
    "flat": (("q_proj", "k_proj"), TypeError, "each group must be a sequence of names"),
    "numbers": ([(1, 2)], TypeError, "each group must be a sequence of names"),
    "one": ([("q_proj",)], ValueError, "2 to 3 different names, got"),
    "twice": ([("q_proj", "q_proj")], ValueError, "2 to 3 different names, got"),
    "four": ([("a", "b", "c", "d")], ValueError, "2 to 3 different names, got"),
}


@pytest.mark.parametrize(("groups", "error", "text"), BAD.values(), ids=BAD)
def test_groups_that_make_no_sense_are_refused_and_change_nothing(groups, error, text) -> None:
    model = inject(llama(), CONFIG)
    group = model.model.layers[0].self_attn.q_proj._shared_input
    with pytest.raises(error, match=f"share_inputs: .*{text}"):
        share_inputs(model, groups=groups)
    assert model.model.layers[0].self_attn.q_proj._shared_input is group


def test_a_model_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got dict"):
        share_inputs({})


def test_the_groups_that_are_known_can_be_asked_for() -> None:
    for names in SIBLINGS:
        share_inputs(nn.Module(), groups=[names])


@pytest.mark.parametrize("name", ["bart", "t5", "llama"])
def test_a_first_pass_gives_the_bits_of_later_ones(name: str):
    """A model that was just loaded would else differ from one that has run."""
    build = MODELS[name][0]
    model = inject(build(), CONFIG)
    randomise(model)
    arguments = {"input_ids": tokens()}
    if name != "llama":
        arguments["decoder_input_ids"] = tokens()
    with torch.no_grad():
        first, second, third = (model(**arguments).logits for _ in range(3))
    assert torch.equal(first, second)
    assert torch.equal(first, third)
