"""With one block, adapters of experts are PEFT's LoRA of `target_parameters`."""

from __future__ import annotations

import copy

import pytest
import torch
from expert_models import BOTH, FAMILIES, fill, tokens
from torch import Tensor, nn

import gralora
from gralora.nn import ExpertWeights

peft = pytest.importorskip("peft")

EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)
RANK, ALPHA = 6, 9


def pair(family: str) -> tuple[nn.Module, nn.Module]:
    """The same model with PEFT's LoRA and with the adapter of one block, with equal factors."""
    base = FAMILIES[family]()
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=[], target_parameters=list(BOTH)
    )
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    fill(theirs)
    settings = gralora.GraLoRAConfig(
        r=RANK, k=1, alpha=ALPHA, target_modules=(), target_parameters=BOTH
    )
    ours = gralora.inject(base, settings)
    with torch.no_grad():
        for name, weights in expert_weights(ours):
            A, B = factors_of(theirs, name, weights.num_experts)
            weights.gralora_A["default"].copy_(A)
            weights.gralora_B["default"].copy_(B)
    return theirs.eval(), ours.eval()


def expert_weights(model: nn.Module) -> list[tuple[str, ExpertWeights]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, ExpertWeights)]


def wrapper_of(theirs: nn.Module, name: str) -> nn.Module:
    """PEFT's wrapper of a parameter; those of one module lie inside each other."""
    owner, _, parameter = name.rpartition(".")
    for inner, module in theirs.named_modules():
        path = inner.removeprefix("base_model.model.").replace(".base_layer", "")
        if path == owner and getattr(module, "parameter_name", None) == parameter:
            return module
    raise AssertionError(name)


def as_blocks(lora_A: Tensor, lora_B: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """``[E, 1, N, r]`` and ``[E, 1, r, M]`` of PEFT's ``[E*r, N]`` and ``[M, r*E]``."""
    A = lora_A.reshape(experts, -1, lora_A.shape[1]).transpose(1, 2)
    B = lora_B.reshape(lora_B.shape[0], -1, experts).permute(2, 1, 0)
    return A.unsqueeze(1), B.unsqueeze(1)


def factors_of(theirs: nn.Module, name: str, experts: int) -> tuple[Tensor, Tensor]:
    wrapper = wrapper_of(theirs, name)
    return as_blocks(
        wrapper.lora_A["default"].weight.detach(),
        wrapper.lora_B["default"].weight.detach(),
        experts,
    )


@EACH_FAMILY
def test_outputs(family: str):
    theirs, ours = pair(family)
    ids = tokens()
    with torch.no_grad():
        want, got = theirs(ids).logits, ours(ids).logits
        gralora.enable_adapters(ours, False)
        frozen = ours(ids).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert (want - frozen).abs().max() > 0.1


@EACH_FAMILY
def test_gradients(family: str):
    theirs, ours = pair(family)
    ids = tokens()
    for model in (theirs, ours):
        model(ids, labels=ids).loss.backward()
    for name, weights in expert_weights(ours):
        wrapper = wrapper_of(theirs, name)
        want = as_blocks(
            wrapper.lora_A["default"].weight.grad,
            wrapper.lora_B["default"].weight.grad,
            weights.num_experts,
        )
        got = weights.gralora_A["default"].grad, weights.gralora_B["default"].grad
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6, msg=name)
            assert other.any()


@EACH_FAMILY
def test_merged_weights(family: str):
    theirs, ours = pair(family)
    want, got = theirs.merge_and_unload().state_dict(), gralora.merge_and_unload(ours).state_dict()
    assert want.keys() == got.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6, msg=name)


@EACH_FAMILY
def test_every_setting_of_the_experts_implementation(family: str):
    theirs, ours = pair(family)
    ids = tokens()
    with torch.no_grad():
        got = ours(ids).logits
        for implementation in ("eager", "batched_mm", "grouped_mm"):
            theirs.base_model.model.set_experts_implementation(implementation)
            torch.testing.assert_close(got, theirs(ids).logits, rtol=1e-4, atol=1e-5)
