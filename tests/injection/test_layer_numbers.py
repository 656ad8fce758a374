"""`layers_to_transform` holds for every kind of `target_modules`, also where PEFT ignores it."""

from __future__ import annotations

import pytest
import torch
from injection_models import Stack, adapted, llama
from peft import GraloraConfig, get_peft_model

import gralora
from gralora.config import GraLoRAConfig

NAMES = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
TARGETS = {
    "expression": (r".*\.q_proj", NAMES[1:]),
    "full names": (NAMES, NAMES[1:]),
    "endings": (["q_proj"], NAMES[1:]),
}


@pytest.mark.parametrize("indices", [1, [1]], ids=["one number", "a list"])
@pytest.mark.parametrize(("targets", "names"), TARGETS.values(), ids=TARGETS)
def test_only_layers_of_these_numbers(targets, names, indices):
    model = llama()
    gralora.inject(
        model, GraLoRAConfig(r=8, k=2, target_modules=targets, layers_to_transform=indices)
    )
    assert adapted(model) == set(names)


def test_all_linear_in_layers_of_these_numbers():
    everywhere, model = llama(), llama()
    gralora.inject(everywhere, GraLoRAConfig(r=8, k=2, target_modules="all-linear"))
    gralora.inject(
        model, GraLoRAConfig(r=8, k=2, target_modules="all-linear", layers_to_transform=[1])
    )
    expected = {name for name in adapted(everywhere) if name.startswith("model.layers.1.")}
    assert len(expected) == 7
    assert adapted(model) == expected


def test_an_expression_with_a_pattern_of_layers():
    model = Stack()
    gralora.inject(
        model,
        GraLoRAConfig(
            r=8, k=2, target_modules=r".*up", layers_to_transform=[0], layers_pattern="blocks"
        ),
    )
    everywhere = Stack()
    gralora.inject(everywhere, GraLoRAConfig(r=8, k=2, target_modules=r".*up"))
    assert adapted(model) == {name for name in adapted(everywhere) if "blocks.0." in name}
    assert adapted(model) < adapted(everywhere)


@pytest.mark.parametrize("targets", [r".*\.q_proj", "all-linear"], ids=["expression", "all-linear"])
def test_an_adapter_for_which_peft_ignored_them_loads_whole(targets, tmp_path):
    theirs = get_peft_model(
        llama(),
        GraloraConfig(
            r=8, gralora_k=2, init_weights=False, target_modules=targets, layers_to_transform=[1]
        ),
    )
    theirs.save_pretrained(tmp_path)
    ours = gralora.load_adapter(llama(), tmp_path)
    assert any(name.startswith("model.layers.0.") for name in adapted(ours))
    ids = torch.arange(6)[None]
    torch.testing.assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
