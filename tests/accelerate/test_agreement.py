"""An accelerated model computes what PEFT computes: outputs and every gradient."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from accelerate_models import (
    CONFIGS,
    accelerated_copy,
    assert_same_gradients,
    decoder,
    gradients,
    gralora,
    layer_of,
    lora,
    network,
    normal,
    tokens,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from gralora.integrations.peft import report

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
RANDOM = settings(max_examples=30, deadline=None, derandomize=True)


@dataclass(frozen=True)
class Case:
    """One random layer, whose widths every grid fits."""

    k: int
    s: int
    n: int
    m: int
    hybrid_r: int
    bias: bool
    leading: tuple[int, ...]
    conv1d: bool

    def base(self) -> nn.Module:
        """A base layer in fp64."""
        N, M = self.k * self.n, self.k * self.m
        return Conv1D(M, N) if self.conv1d else nn.Linear(N, M, bias=self.bias)


CASES = st.builds(
    Case,
    k=st.integers(1, 4),
    s=st.integers(1, 3),
    n=st.integers(1, 6),
    m=st.integers(1, 6),
    hybrid_r=st.integers(0, 3),
    bias=st.booleans(),
    # The dimensions that PEFT's own GraLoRA layer takes.
    leading=st.lists(st.integers(1, 4), min_size=1, max_size=2).map(tuple),
    conv1d=st.booleans(),
)


def pair(case, kind, **options):
    """PEFT's network and an accelerated copy, in fp64."""
    if kind == "gralora":
        options |= {"gralora_k": case.k, "r": case.k * case.s, "hybrid_r": case.hybrid_r}
    theirs = network(
        CONFIGS[kind], case.base(), torch.float64, fan_in_fan_out=case.conv1d, **options
    )
    return accelerated_copy(theirs), theirs


def step(model, x):
    """Output, and the input's gradient of its weighted sum; parameters' gradients stay in them."""
    x = x.clone().requires_grad_()
    y = model(x)
    (y * normal(*y.shape, dtype=y.dtype)).sum().backward()
    return y, x.grad


@pytest.mark.parametrize("kind", CONFIGS)
@RANDOM
@given(case=CASES)
def test_layer(kind, case):
    ours, theirs = pair(case, kind)
    assert [row.way for row in report(ours)] == ["fused"]
    x = normal(*case.leading, case.k * case.n, dtype=torch.float64)
    for found, expected in zip(step(ours, x), step(theirs, x), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)
    assert_same_gradients(ours, theirs, **CLOSE)


@pytest.mark.parametrize("kind", CONFIGS)
@RANDOM
@given(case=CASES)
def test_layer_beside_its_base(kind, case):
    ours, theirs = pair(case, kind)
    layer_of(ours).base_layer.register_forward_hook(lambda *_: None)
    assert [row.way for row in report(ours)] == ["beside"]
    x = normal(*case.leading, case.k * case.n, dtype=torch.float64)
    for found, expected in zip(step(ours, x), step(theirs, x), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)
    assert_same_gradients(ours, theirs, **CLOSE)


DECODERS = {
    "llama, lora": ("llama", lora, {}),
    "llama, rank-stabilised lora": ("llama", lora, {"use_rslora": True}),
    "llama, lora with modules to save": ("llama", lora, {"modules_to_save": ["lm_head"]}),
    "llama, gralora": ("llama", gralora, {"hybrid_r": 0}),
    "llama, hybrid gralora": ("llama", gralora, {}),
    "gpt2, lora": ("gpt2", lora, {"fan_in_fan_out": True}),
    "gpt2, lora with trained biases": ("gpt2", lora, {"fan_in_fan_out": True, "bias": "all"}),
    "gpt2, hybrid gralora": ("gpt2", gralora, {"fan_in_fan_out": True}),
}


@pytest.mark.parametrize(("base", "config", "options"), DECODERS.values(), ids=DECODERS)
def test_decoder(base, config, options):
    theirs = decoder(base, config, **options)
    ours = accelerated_copy(theirs)
    assert set(report(ours).counts()) == {"fused"}
    ids = tokens()
    found, expected = (model(input_ids=ids, labels=ids) for model in (ours, theirs))
    torch.testing.assert_close(found.logits, expected.logits)
    found.loss.backward()
    expected.loss.backward()
    assert_same_gradients(ours, theirs)


def test_trained_biases_have_gradients():
    model = accelerated_copy(decoder("gpt2", lora, fan_in_fan_out=True, bias="all"))
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    assert any(name.endswith("base_layer.bias") for name in gradients(model))


@pytest.mark.parametrize("kind", CONFIGS)
def test_several_active_adapters(kind):
    theirs = network(CONFIGS[kind], dtype=torch.float64)
    theirs.add_adapter("second", CONFIGS[kind](target_modules=["layer"], r=2))
    theirs.base_model.set_adapter(["default", "second"])
    ours = accelerated_copy(theirs)
    x = normal(3, 12, dtype=torch.float64)
    for found, expected in zip(step(ours, x), step(theirs, x), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)
    assert_same_gradients(ours, theirs, **CLOSE)
    assert any("second" in name for name in gradients(ours))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", CONFIGS)
def test_float32_adapters_on_a_half_precision_base(kind, dtype):
    theirs = network(CONFIGS[kind], dtype=dtype)
    ours = accelerated_copy(theirs)
    x = normal(5, 12, dtype=dtype)
    (y, dx), (their_y, their_dx) = step(ours, x), step(theirs, x)
    assert {p.dtype for p in ours.parameters() if p.requires_grad} == {torch.float32}
    assert y.dtype is dtype
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(y, their_y, **tolerance)
    torch.testing.assert_close(dx, their_dx, **tolerance)
    assert_same_gradients(ours, theirs, rtol=0.05, atol=0.05)
    assert {g.dtype for g in gradients(ours).values()} == {torch.float32}
