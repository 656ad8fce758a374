"""k = 1, and the hybrid pair alone, against PEFT's own LoRA layer, on random configurations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("peft.tuners.gralora.layer", reason="PEFT with GraLoRA is not installed")

from peft_pairs import RANDOM, cases, inputs, lora_pair, step

from gralora.functional import delta_weight, gralora_linear

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def pair_of(case, device, use_rslora=False):
    """Both layers in fp64 on the device."""
    pair = lora_pair(case, use_rslora)
    return pair.to(base=torch.float64, factors=torch.float64, device=device)


@RANDOM
@given(case=cases(hybrid=False, square_only=True), use_rslora=st.booleans())
def test_forward(device, case, use_rslora):
    pair = pair_of(case, device, use_rslora)
    x, _ = inputs(case, torch.float64, device)
    torch.testing.assert_close(pair.ours(x), pair.theirs(x), **TOLERANCE)


@RANDOM
@given(case=cases(hybrid=False, square_only=True), use_rslora=st.booleans())
def test_gradients(device, case, use_rslora):
    pair = pair_of(case, device, use_rslora)
    x, dy = inputs(case, torch.float64, device)
    ours = step(pair.ours, pair.our_factors, x, dy)
    theirs = step(pair.theirs, pair.their_factors, x, dy)
    torch.testing.assert_close(ours["x"], theirs["x"], **TOLERANCE)
    for name in ("A", "B"):
        torch.testing.assert_close(pair.like_theirs(name, ours[name]), theirs[name], **TOLERANCE)


@RANDOM
@given(case=cases(hybrid=False, square_only=True), use_rslora=st.booleans())
def test_delta_weight(device, case, use_rslora):
    pair = pair_of(case, device, use_rslora)
    expected = pair.theirs.get_delta_weight("default")
    torch.testing.assert_close(pair.ours.delta_weight(), expected, **TOLERANCE)


@RANDOM
@given(case=cases(hybrid=False, square_only=True))
def test_the_hybrid_pair_alone_is_lora(device, case):
    pair = pair_of(case, device)
    lora = {"lora_A": pair.their_factors["A"], "lora_B": pair.their_factors["B"]}
    base = pair.theirs.base_layer
    x, dy = inputs(case, torch.float64, device)

    def layer(x):
        scaling = case.alpha / case.r
        return gralora_linear(x, base.weight, base.bias, None, None, scaling=scaling, **lora)

    ours = step(layer, {"A": lora["lora_A"], "B": lora["lora_B"]}, x, dy)
    theirs = step(pair.theirs, pair.their_factors, x, dy)
    for name in ("y", "x", "A", "B"):
        torch.testing.assert_close(ours[name], theirs[name], **TOLERANCE)


@RANDOM
@given(case=cases(hybrid=False, square_only=True))
def test_delta_weight_of_the_hybrid_pair_alone_is_that_of_lora(device, case):
    pair = pair_of(case, device)
    lora = {"lora_A": pair.their_factors["A"], "lora_B": pair.their_factors["B"]}
    ours = delta_weight(None, None, scaling=case.alpha / case.r, **lora)
    torch.testing.assert_close(ours, pair.theirs.get_delta_weight("default"), **TOLERANCE)
