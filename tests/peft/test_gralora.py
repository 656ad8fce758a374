"""The layer against PEFT's own GraLoRA layer, on random configurations, in fp64 and fp32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

pytest.importorskip("peft.tuners.gralora.layer", reason="PEFT with GraLoRA is not installed")

from peft_pairs import RANDOM, cases, gralora_pair, inputs, step

TOLERANCES = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-9},
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)


@DTYPES
@RANDOM
@given(case=cases())
def test_forward(device, dtype, case):
    pair = gralora_pair(case).to(base=dtype, factors=dtype, device=device)
    x, _ = inputs(case, dtype, device)
    torch.testing.assert_close(pair.ours(x), pair.theirs(x), **TOLERANCES[dtype])


@DTYPES
@RANDOM
@given(case=cases())
def test_gradients(device, dtype, case):
    pair = gralora_pair(case).to(base=dtype, factors=dtype, device=device)
    x, dy = inputs(case, dtype, device)
    ours = step(pair.ours, pair.our_factors, x, dy)
    theirs = step(pair.theirs, pair.their_factors, x, dy)
    for name in ["x", *pair.our_factors]:
        torch.testing.assert_close(ours[name], theirs[name], **TOLERANCES[dtype])


@DTYPES
@RANDOM
@given(case=cases())
def test_delta_weight(device, dtype, case):
    pair = gralora_pair(case).to(base=dtype, factors=dtype, device=device)
    torch.testing.assert_close(
        pair.ours.delta_weight(), pair.theirs.get_delta_weight("default"), **TOLERANCES[dtype]
    )


@RANDOM
@given(case=cases())
def test_merged_weight(device, case):
    pair = gralora_pair(case).to(base=torch.float64, factors=torch.float64, device=device)
    pair.ours.merge()
    pair.theirs.merge()
    torch.testing.assert_close(pair.ours.weight, pair.theirs.base_layer.weight)


@RANDOM
@given(case=cases())
def test_factors_have_the_same_shapes(case):
    pair = gralora_pair(case)
    shapes = {name: factor.shape for name, factor in pair.their_factors.items()}
    assert {name: factor.shape for name, factor in pair.our_factors.items()} == shapes


def test_fresh_adapters_have_the_same_distribution():
    """Both draw A between the same bounds: PEFT's largest element is within a percent of ours."""
    from peft import GraloraConfig
    from peft.tuners.gralora.layer import Linear

    from gralora.nn import GraLoRALinear

    config = GraloraConfig(r=64, gralora_k=4, alpha=128, gralora_dropout=0.0)
    theirs = Linear(torch.nn.Linear(256, 128), "default", "module", config, r=64)
    ours = GraLoRALinear(256, 128, r=64, k=4)
    largest = theirs.gralora_A["default"].detach().abs().max().item()
    assert ours.gralora_A["default"].detach().abs().max().item() == pytest.approx(largest, rel=0.01)
