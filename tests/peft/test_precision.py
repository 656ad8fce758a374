"""Rounding errors against fp64: ours are no larger than those of PEFT's layer."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

pytest.importorskip("peft.tuners.gralora.layer", reason="PEFT with GraLoRA is not installed")

from peft_pairs import Case, gralora_pair, inputs, step

# Equal roundings in another order differ by a few percent on inputs of this size.
SLACK = 1.05
# PEFT adds the two parts of an fp32 input's gradient in fp32; ours is rounded once more, to
# autocast's dtype, in which both parts are computed.
SLACK_OF_DX_BELOW_FP32 = 1.15
SEEDS = range(3)
QUANTITIES = ["y", "x", "A", "B", "lora_A", "lora_B"]
SETTINGS = [
    pytest.param(torch.float32, torch.float32, torch.float32, None, id="fp32"),
    pytest.param(
        torch.float32, torch.float32, torch.float32, torch.bfloat16, id="fp32-autocast-bf16"
    ),
    pytest.param(
        torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16, id="bf16-autocast-bf16"
    ),
    pytest.param(torch.bfloat16, torch.bfloat16, torch.bfloat16, None, id="bf16"),
    pytest.param(
        torch.float32, torch.float32, torch.float32, torch.float16, id="fp32-autocast-fp16"
    ),
    pytest.param(torch.float16, torch.float16, torch.float16, None, id="fp16"),
]


def errors(case, base, factors, x_dtype, autocast, device):
    """Per quantity the squared errors of ours and PEFT's, from one pair of layers."""
    pair = gralora_pair(case).to(base=base, factors=factors, device=device)
    x, dy = inputs(case, x_dtype, device)
    kind = torch.device(device).type
    context = torch.autocast(kind, dtype=autocast) if autocast else nullcontext()
    with context:
        ours = step(pair.ours, pair.our_factors, x, dy)
        theirs = step(pair.theirs, pair.their_factors, x, dy)
    pair.to(base=torch.float64, factors=torch.float64, device=device)
    exact = step(pair.theirs, pair.their_factors, x.double(), dy.to(ours["y"].dtype).double())
    return {
        name: tuple(
            (run[name].double() - exact[name]).square().sum().item() for run in (ours, theirs)
        )
        for name in exact
    }


@pytest.mark.parametrize("k", [1, 4], ids=["k1", "k4"])
@pytest.mark.parametrize(("base", "factors", "x_dtype", "autocast"), SETTINGS)
def test_errors_are_no_larger_than_those_of_peft(device, base, factors, x_dtype, autocast, k):
    ours = dict.fromkeys(QUANTITIES, 0.0)
    theirs = dict.fromkeys(QUANTITIES, 0.0)
    for seed in SEEDS:
        case = Case(
            k=k,
            s=16 // k,
            n=192 // k,
            m=144 // k,
            hybrid_r=4,
            alpha=32,
            bias=True,
            leading=(127,),
            seed=seed,
        )
        for name, (our, their) in errors(case, base, factors, x_dtype, autocast, device).items():
            ours[name] += our
            theirs[name] += their
    ratios = {name: (ours[name] / theirs[name]) ** 0.5 for name in QUANTITIES}
    allowed = dict.fromkeys(QUANTITIES, SLACK)
    if autocast is not None and x_dtype is torch.float32:
        allowed["x"] = SLACK_OF_DX_BELOW_FP32
    assert all(ratios[name] <= allowed[name] for name in QUANTITIES), ratios
