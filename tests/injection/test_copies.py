"""copy.deepcopy and pickle give models that work, and that are independent."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from injection_models import llama, randomise, trainable

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject
from gralora.injection.record import adapter_records
from gralora.injection.switching import set_adapter


def through_torch_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = [
    pytest.param(copy.deepcopy, id="deepcopy"),
    pytest.param(lambda model: pickle.loads(pickle.dumps(model)), id="pickle"),
    pytest.param(through_torch_save, id="torch-save"),
]


@pytest.fixture
def injected():
    """Two adapters on a model with tied weights, one of which saves the head and has biases."""
    model = llama(tie_word_embeddings=True, attention_bias=True)
    config = GraLoRAConfig(r=8, bias="gralora_only", modules_to_save=["lm_head"])
    inject(model, config, "first")
    return randomise(inject(model, GraLoRAConfig(r=4, target_modules=["q_proj"]), "second"))


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("name", ["first", "second"])
def test_copy_gives_the_same_outputs(injected, copied, name, x):
    set_adapter(injected, name)
    other = copied(injected)
    assert torch.equal(other(x).logits, injected(x).logits)
    assert trainable(other) == trainable(injected)


@pytest.mark.parametrize("copied", COPIES)
def test_copy_has_records_of_its_own(injected, copied):
    other = copied(injected)
    assert adapter_records(other) == adapter_records(injected)
    inject(other, GraLoRAConfig(r=4), "third")
    assert adapter_records(injected).keys() == {"first", "second"}


@pytest.mark.parametrize("copied", COPIES)
def test_copy_is_independent(injected, copied, x):
    before = injected(x).logits
    other = copied(injected)
    set_adapter(other, "first")
    for parameter in other.parameters():
        with torch.no_grad():
            parameter.fill_(0.5)
    assert torch.equal(injected(x).logits, before)
    assert all(not name.endswith(".first") for name in trainable(injected))


@pytest.mark.parametrize("copied", COPIES)
def test_copy_keeps_tied_copies_tied(injected, copied):
    other = copied(injected)
    head, embeddings = other.lm_head, other.model.embed_tokens
    assert head.modules_to_save["first"].weight is embeddings.modules_to_save["first"].weight
    assert head.original_module.weight is embeddings.original_module.weight
