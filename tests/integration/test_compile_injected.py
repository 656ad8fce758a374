"""torch.compile of a whole injected model: one graph for every number of tokens."""

from __future__ import annotations

import pytest
import torch
from training_group import language_model

from gralora.config import GraLoRAConfig
from gralora.injection.inject import inject

SHAPES = [(2, 7), (3, 12), (2, 33)]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    """No graph of another test is at hand, and every recompilation is an error."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def ids(rows, columns):
    return torch.randint(1, 64, (rows, columns), generator=torch.Generator().manual_seed(columns))


def step(function, model, x):
    """Loss and the gradients of everything that trains."""
    model.zero_grad()
    loss = function(input_ids=x, labels=x, use_cache=False).loss
    loss.backward()
    return {"loss": loss.detach()} | {
        name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad
    }


def injected(tied=False, **settings):
    """One layer is enough to see recompilations, and compiles fast."""
    model = language_model(num_hidden_layers=1, tie_word_embeddings=tied)
    return inject(model, GraLoRAConfig(r=8, **settings))


def compiled(model):
    return torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"hybrid_r": 2, "bias": "all"}, id="adapters-and-biases"),
        pytest.param({"modules_to_save": ["lm_head"], "tied": True}, id="saved-and-tied"),
    ],
)
def test_steps_of_any_length_agree_with_eager(settings, randomise):
    model = randomise(injected(**settings))
    function = compiled(model)
    for shape in SHAPES:
        actual, expected = step(function, model, ids(*shape)), step(model, model, ids(*shape))
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5)


def test_evaluation_of_any_length_agrees_with_eager(randomise):
    model = randomise(injected()).eval()
    function = compiled(model)
    with torch.no_grad():
        for shape in SHAPES:
            x = ids(*shape)
            actual, expected = function(x, use_cache=False), model(x, use_cache=False)
            torch.testing.assert_close(actual.logits, expected.logits)
