"""modules_to_save: trained copies, tied where the originals are, beside the frozen originals."""

from __future__ import annotations

import copy

import pytest
import torch
from injection_models import Stack, llama, randomise, tokens, trainable
from torch import nn
from transformers import LlamaForCausalLM

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject
from gralora.injection.record import adapter_records
from gralora.injection.saved_module import SavedModule
from gralora.injection.switching import delete_adapter, enable_adapters, set_adapter

HEAD = GraLoRAConfig(r=4, target_modules=["up"], modules_to_save=["head"])


@pytest.fixture
def z():
    return torch.randn(5, 16)


@pytest.fixture
def stack():
    """A model whose head is saved by "default", with a copy that differs from the original."""
    model = randomise(inject(Stack(), HEAD))
    with torch.no_grad():
        model.head.modules_to_save["default"].weight.add_(1)
    return model


def tied(save="lm_head"):
    """A language model with tied embeddings, of which one end was asked to be saved."""
    model = llama(tie_word_embeddings=True)
    return inject(model, GraLoRAConfig(r=8, target_modules=["q_proj"], modules_to_save=[save]))


def test_copy_trains_and_the_original_is_frozen(z):
    model = inject(Stack(), HEAD)
    original = model.head.original_module
    before = copy.deepcopy(original.state_dict())
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0)
    model(z).sum().backward()
    optimizer.step()
    assert {name for name in trainable(model) if name.startswith("head")} == {
        "head.modules_to_save.default.weight",
        "head.modules_to_save.default.bias",
    }
    assert not torch.equal(model.head.modules_to_save["default"].bias, before["bias"])
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())


def test_fresh_copy_changes_no_output(z):
    assert torch.equal(inject(Stack(), HEAD)(z), Stack()(z))


def test_call_goes_to_the_active_copy(stack, z):
    copied, original = stack.head.modules_to_save["default"], stack.head.original_module
    assert torch.equal(stack.head(z), copied(z))
    enable_adapters(stack, False)
    assert torch.equal(stack.head(z), original(z))
    enable_adapters(stack, True)
    set_adapter(stack, [])
    assert torch.equal(stack.head(z), original(z))


def test_attributes_are_those_of_the_active_copy(stack):
    assert stack.head.weight is stack.head.modules_to_save["default"].weight
    assert stack.head.out_features == 4
    set_adapter(stack, [])
    assert stack.head.weight is stack.head.original_module.weight


def test_unknown_attribute_is_an_attribute_error(stack):
    with pytest.raises(AttributeError, match="nothing"):
        _ = stack.head.nothing


def test_parameter_that_is_assigned_goes_to_the_active_copy(stack):
    new = nn.Parameter(torch.zeros(4, 16))
    stack.head.weight = new
    assert stack.head.modules_to_save["default"].weight is new
    assert "weight" not in stack.head._parameters


def test_second_adapter_copies_the_original(stack):
    inject(stack, HEAD, "second")
    copies = stack.head.modules_to_save
    assert torch.equal(copies["second"].weight, stack.head.original_module.weight)
    assert not torch.equal(copies["default"].weight, copies["second"].weight)
    assert {name for name in trainable(stack) if name.startswith("head")} == {
        "head.modules_to_save.second.weight",
        "head.modules_to_save.second.bias",
    }


def test_two_copies_are_not_active_together(stack):
    inject(stack, HEAD, "second")
    text = r"^set_adapter: only one .* got \['default', 'second'\], which all save head"
    with pytest.raises(ValueError, match=text):
        set_adapter(stack, ["default", "second"])
    assert stack.head.active_adapter == "second"


def test_adapter_without_a_copy_uses_the_original(stack, z):
    inject(stack, GraLoRAConfig(r=4, target_modules=["up"]), "second")
    assert torch.equal(stack.head(z), stack.head.original_module(z))


def test_adapters_with_and_without_a_copy_act_together(stack, z):
    inject(stack, GraLoRAConfig(r=4, target_modules=["down"]), "second")
    set_adapter(stack, ["default", "second"])
    assert torch.equal(stack.head(z), stack.head.modules_to_save["default"](z))


def test_deleted_copy_is_gone(stack, z):
    delete_adapter(stack, "default")
    assert torch.equal(stack.head(z), stack.head.original_module(z))
    assert len(stack.head.modules_to_save) == 0


def test_base_state_dict_loads_into_the_original():
    model = inject(Stack(), HEAD)
    base = {key: value + 1 for key, value in Stack().state_dict().items()}
    copied = model.head.modules_to_save["default"].weight.clone()
    result = model.load_state_dict(base, strict=False)
    assert result.unexpected_keys == []
    assert set(result.missing_keys) == trainable(model)
    assert torch.equal(model.head.original_module.weight, base["head.weight"])
    assert torch.equal(model.head.modules_to_save["default"].weight, copied)


def test_base_state_dict_of_a_saved_container_loads():
    config = GraLoRAConfig(r=4, target_modules=["head"], modules_to_save=["blocks.1"])
    model = inject(Stack(), config)
    base = {key: value + 1 for key, value in Stack().state_dict().items()}
    assert model.load_state_dict(base, strict=False).unexpected_keys == []
    original = model.body.blocks[1].original_module
    assert torch.equal(original.up.weight, base["body.blocks.1.up.weight"])


def test_own_state_dict_loads_strictly(stack, z):
    other = inject(Stack(), HEAD)
    other.load_state_dict(stack.state_dict())
    assert torch.equal(other(z), stack(z))


def test_module_inside_another_saved_one_is_part_of_its_copy():
    config = GraLoRAConfig(r=4, target_modules=["head"], modules_to_save=["blocks.1", "1.up"])
    model = inject(Stack(), config)
    assert adapter_records(model)["default"].saved_modules == ("body.blocks.1",)


def test_module_with_two_names_is_saved_once():
    model = Stack()
    model.tail = model.head
    inject(model, HEAD)
    assert model.tail is model.head
    assert isinstance(model.head, SavedModule)
    assert adapter_records(model)["default"].saved_modules == ("head",)


def test_container_with_two_names_is_saved_once():
    model = Stack()
    model.extra = model.body.blocks[1]
    config = GraLoRAConfig(r=4, target_modules=["head"], bias="all", modules_to_save=["blocks.1"])
    inject(model, config)
    assert model.extra is model.body.blocks[1]
    assert isinstance(model.extra, SavedModule)
    record = adapter_records(model)["default"]
    assert record.saved_modules == ("body.blocks.1",)
    assert not any(name.startswith(("extra", "body.blocks.1.")) for name in record.biases)


def test_mode_reaches_the_copies(stack):
    stack.eval()
    assert not stack.head.modules_to_save["default"].training


@pytest.mark.parametrize("save", ["lm_head", "embed_tokens"])
def test_tied_partner_is_saved_too_and_the_copies_share_one_parameter(save):
    model = tied(save)
    saved = adapter_records(model)["default"].saved_modules
    assert saved == ("model.embed_tokens", "lm_head")
    embeddings, head = model.model.embed_tokens, model.lm_head
    assert embeddings.modules_to_save["default"].weight is head.modules_to_save["default"].weight
    assert embeddings.original_module.weight is head.original_module.weight
    assert embeddings.weight is not embeddings.original_module.weight


def test_tied_copies_get_the_gradient_of_both_uses(x):
    reference = llama(tie_word_embeddings=True)
    reference(input_ids=x, labels=x).loss.backward()
    model = tied()
    model(input_ids=x, labels=x).loss.backward()
    torch.testing.assert_close(model.lm_head.weight.grad, reference.lm_head.weight.grad)


@pytest.mark.parametrize("active", [True, False], ids=["active", "inactive"])
def test_transformers_ties_again_without_harm(active):
    model = tied()
    if not active:
        set_adapter(model, [])
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    model.tie_weights()
    assert [name for name, _ in model.named_parameters(remove_duplicate=False)] == names
    embeddings, head = model.model.embed_tokens, model.lm_head
    assert embeddings.modules_to_save["default"].weight is head.modules_to_save["default"].weight
    assert embeddings.original_module.weight is head.original_module.weight


def test_transformers_finds_the_embeddings():
    model = tied()
    assert model.get_output_embeddings() is model.lm_head
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_input_embeddings().num_embeddings == 64


def test_transformers_saves_a_model_with_tied_copies(tmp_path, x):
    model = tied()
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    other = tied()
    result = other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert result.unexpected_keys == []
    assert torch.equal(other(x).logits, model(x).logits)


def test_second_adapter_ties_its_own_copies():
    model = tied()
    inject(model, GraLoRAConfig(r=8, target_modules=["q_proj"], modules_to_save=["lm_head"]), "b")
    copies = model.lm_head.modules_to_save, model.model.embed_tokens.modules_to_save
    assert copies[0]["b"].weight is copies[1]["b"].weight
    assert copies[0]["b"].weight is not copies[0]["default"].weight
    assert adapter_records(model)["b"].saved_modules == ("model.embed_tokens", "lm_head")


def test_adapter_that_saves_nothing_leaves_the_tie_alone():
    model = llama(tie_word_embeddings=True)
    inject(model, GraLoRAConfig(r=8))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_generation_uses_the_copy(x):
    model = tied().eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(2))
    plain = llama(tie_word_embeddings=True).eval()
    plain.load_state_dict({**plain.state_dict(), "lm_head.weight": model.lm_head.weight})
    with torch.no_grad():
        plain.lm_head.weight.copy_(model.lm_head.weight)
    settings = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(tokens(), **settings), plain.generate(tokens(), **settings))
    assert isinstance(plain, LlamaForCausalLM)
