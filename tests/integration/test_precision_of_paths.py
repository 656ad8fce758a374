"""Errors against fp64 on every path are not above those of PEFT's layer on the same inputs."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

pytest.importorskip("peft.tuners.gralora.layer", reason="PEFT with GraLoRA is not installed")

from peft import GraloraConfig
from peft.tuners.gralora.layer import Linear as PeftGralora

from gralora.nn import GraLoRALinear

# Equal roundings in another order differ by a few percent.
SLACK = 1.05
PATHS = [("cpu", None), ("cuda", None), ("cuda", "aten"), ("cuda", "sm80"), ("cuda", "sm90")]
PATH_IDS = ["cpu", "chosen", "aten", "sm80", "sm90"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# N, M, r, k, r0, tokens: blocks of 288, 144 and 48 as in SmolLM2, and a wider layer.
LAYERS = {
    "576_to_192": (576, 192, 32, 2, 0, 200),
    "576_to_192_hybrid": (576, 192, 32, 4, 8, 200),
    "1536_to_576": (1536, 576, 64, 4, 0, 129),
    "576_to_1536_long": (576, 1536, 32, 4, 0, 1500),
}


def _pair(layer, base, factors, device):
    """PEFT's layer and ours with the same numbers, rounded to the dtypes of base and factors."""
    in_features, out_features, r, k, r0, _ = layer
    linear = nn.Linear(in_features, out_features, dtype=torch.float64)
    linear = linear.to(device, base).requires_grad_(False)
    config = GraloraConfig(
        r=r, hybrid_r=r0, gralora_k=k, alpha=2 * r, gralora_dropout=0.0, init_weights=False
    )
    theirs = PeftGralora(linear, "default", "module", config, r=r).to(device)
    ours = GraLoRALinear.from_linear(
        linear, r=r, k=k, alpha=2 * r, hybrid_r=r0, adapter_dtype=factors
    )
    parameters = {
        "A": (ours.gralora_A, theirs.gralora_A["default"]),
        "B": (ours.gralora_B, theirs.gralora_B["default"]),
    }
    if r0:
        parameters["lora_A"] = (ours.lora_A, theirs.gralora_A_general["default"].weight)
        parameters["lora_B"] = (ours.lora_B, theirs.gralora_B_general["default"].weight)
    for group, parameter in parameters.values():
        parameter.data = parameter.data.to(device, factors)
        group["default"].data = parameter.data.clone()
    our_factors = {name: group["default"] for name, (group, _) in parameters.items()}
    return (ours, our_factors), (theirs, {name: p for name, (_, p) in parameters.items()})


def _step(module, factors, x, dy):
    x = x.detach().clone().requires_grad_(True)
    y = module(x)
    grads = torch.autograd.grad(y, [x, *factors.values()], dy.to(y.dtype))
    return {"y": y.detach(), "x": grads[0], **dict(zip(factors, grads[1:], strict=True))}


def _error(actual, exact):
    return float(
        torch.linalg.vector_norm(actual.double() - exact) / torch.linalg.vector_norm(exact)
    )


@pytest.mark.parametrize("adapters", ["autocast_fp32", "same_dtype"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize(("where", "path"), PATHS, ids=PATH_IDS)
def test_relative_error(where, path, layer, dtype, adapters, forced, request):
    device = request.getfixturevalue("cuda") if where == "cuda" else torch.device("cpu")
    in_features, out_features, *_, tokens = layer
    tokens = tokens if where == "cuda" else min(tokens, 200)
    autocast = adapters == "autocast_fp32"
    (ours, our_factors), (theirs, their_factors) = _pair(
        layer, dtype, torch.float32 if autocast else dtype, device
    )
    x = torch.randn(tokens, in_features, device=device).to(dtype)
    dy = torch.randn(tokens, out_features, device=device).to(dtype)
    with torch.autocast(where, dtype=dtype) if autocast else nullcontext():
        with forced(path):
            actual = _step(ours, our_factors, x, dy)
        peft = _step(theirs, their_factors, x, dy)
    theirs.double()
    exact = _step(
        theirs, dict(zip(our_factors, their_factors.values(), strict=True)), x.double(), dy
    )
    above = {
        name: (_error(actual[name], value), _error(peft[name], value))
        for name, value in exact.items()
        if _error(actual[name], value) > SLACK * _error(peft[name], value)
    }
    assert not above, f"ours and PEFT's: {above}"
