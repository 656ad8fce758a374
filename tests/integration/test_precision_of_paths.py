"""Errors against fp64 on every path are not above those of PEFT's layer on the same inputs."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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


adapters = pytest.mark.parametrize("adapters", ["autocast_fp32", "same_dtype"])
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
everywhere = pytest.mark.parametrize(("where", "path"), PATHS, ids=PATH_IDS)


def _errors(layer, dtype, adapters, device, on_path):
    """Our relative error and PEFT's, of the result and of every gradient."""
    in_features, out_features, *_, tokens = layer
    autocast = adapters == "autocast_fp32"
    (ours, our_factors), (theirs, their_factors) = _pair(
        layer, dtype, torch.float32 if autocast else dtype, device
    )
    x = torch.randn(tokens, in_features, device=device).to(dtype)
    dy = torch.randn(tokens, out_features, device=device).to(dtype)
    with torch.autocast(device.type, dtype=dtype) if autocast else nullcontext():
        with on_path:
            actual = _step(ours, our_factors, x, dy)
        peft = _step(theirs, their_factors, x, dy)
    theirs.double()
    exact = _step(
        theirs, dict(zip(our_factors, their_factors.values(), strict=True)), x.double(), dy
    )
    return {name: (_error(actual[name], v), _error(peft[name], v)) for name, v in exact.items()}


def _above(errors):
    return {name: pair for name, pair in errors.items() if pair[0] > SLACK * pair[1]}


@adapters
@dtypes
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
@everywhere
def test_relative_error(where, path, layer, dtype, adapters, forced, request):
    device = request.getfixturevalue("cuda") if where == "cuda" else torch.device("cpu")
    if where == "cpu":
        layer = (*layer[:-1], min(layer[-1], 200))
    above = _above(_errors(layer, dtype, adapters, device, forced(path)))
    assert not above, f"ours and PEFT's: {above}"


@st.composite
def random_layers(draw):
    """Layers that the kernels can run and PEFT can build: square grids, widths in eights."""
    k = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 16]))
    n, m = (8 * draw(st.integers(-(-16 // k), -(-80 // k))) for _ in "nm")
    s = draw(st.integers(1, max(1, 96 // k)))
    r0 = draw(st.sampled_from([0, 0, 3, 8, 24]))
    return k * n, k * m, k * s, k, r0, draw(st.integers(128, 3000))


@adapters
@dtypes
@everywhere
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_relative_error_of_random_layers(where, path, dtype, adapters, forced, request, data):
    device = request.getfixturevalue("cuda") if where == "cuda" else torch.device("cpu")
    layer = data.draw(random_layers())
    if where == "cpu":
        layer = (*layer[:-1], min(layer[-1], 300))
    above = _above(_errors(layer, dtype, adapters, device, forced(path)))
    assert not above, f"ours and PEFT's: {above}"
