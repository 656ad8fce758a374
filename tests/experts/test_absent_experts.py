"""Numbers that no expert has: transformers writes the one beyond the last where it has none."""

from __future__ import annotations

import pytest
import torch
from expert_models import FAMILIES, routed, wrapped
from torch import Tensor, nn
from torch.func import functional_call

from gralora.nn import GraLoRAExperts

EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"]
)


def inputs(
    module: GraLoRAExperts, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, choices of which some are beyond the last, and shares, zero at those."""
    experts = module.gate_up_proj.num_experts
    index, shares = routed(experts)
    index[::3, 0] = experts
    index[4] = experts
    shares = shares.masked_fill(index == experts, 0.0)
    x = torch.randn(len(index), 32)
    x, shares = (t.to(device, dtype).requires_grad_() for t in (x, shares))
    return x, index.to(device), shares


def results(call, x: Tensor, index: Tensor, shares: Tensor, trained: list[Tensor]) -> list[Tensor]:
    y = call(x, index, shares)
    torch.manual_seed(2)
    return [y, *torch.autograd.grad(y, [x, shares, *trained], torch.randn_like(y))]


def own_forwards() -> dict[str, dict[str, object]]:
    """What transformers' own forward needs to accept numbers beyond the last."""
    return {
        "grouped_mm": {"_is_expert_parallel": True},
        "batched_mm": {"_is_expert_parallel": True},
        "eager": {},
    }


@EACH_FAMILY
@pytest.mark.parametrize("implementation", own_forwards())
def test_the_result_is_that_of_transformers(
    family: str, implementation: str, monkeypatch: pytest.MonkeyPatch, device: torch.device
):
    if implementation == "eager" and device.type == "cuda":
        pytest.skip("where the loop refuses, an assertion ends the process's use of the device")
    module = wrapped(family, r=8, k=2).to(device)
    base = module.base_layer
    x, index, shares = inputs(module, device, torch.float32)
    trained = [p for p in module.parameters() if p.requires_grad]
    got = results(module, x, index, shares, trained)

    base.config._experts_implementation = implementation
    for name, value in own_forwards()[implementation].items():
        monkeypatch.setattr(base, name, value, raising=False)

    def theirs(*arguments: Tensor) -> Tensor:
        changed = {n: weights.added_to_weight() for n, weights in module.weights.items()}
        return functional_call(base, changed, arguments)

    try:
        want = results(theirs, x, index, shares, trained)
    except RuntimeError as error:
        # Until 5.17 the loop over experts takes numbers of experts alone.
        if implementation == "eager" and "Class values must be smaller" in str(error):
            pytest.skip("this transformers loops over numbers of experts alone")
        raise
    # Batched products until 5.17 give the router a gradient by the last expert there.
    want[2] = want[2].masked_fill(index == module.gate_up_proj.num_experts, 0)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@EACH_FAMILY
@DTYPES
@pytest.mark.parametrize("number", ["the one beyond", "far beyond", "below zero"])
def test_a_token_without_an_expert_gets_exact_zeros(
    family: str, dtype: torch.dtype, number: str, device: torch.device
):
    module = wrapped(family, r=8, k=2, adapter_dtype=dtype).to(device, dtype)
    experts = module.gate_up_proj.num_experts
    x, index, shares = inputs(module, device, dtype)
    beyond = {"the one beyond": experts, "far beyond": 10 * experts, "below zero": -1}[number]
    index[index == experts] = beyond
    shares = torch.rand(shares.shape).to(device, dtype).requires_grad_()
    y, dx, dshares, *_ = results(module, x, index, shares, [])
    absent = (index == beyond).all(1)
    assert absent.any()
    assert not y[absent].any()
    assert not dx[absent].any()
    assert not dshares[index == beyond].any()
    assert y[~absent].any(1).all()
    assert dx[~absent].any(1).all()


@DTYPES
def test_what_a_token_without_an_expert_holds_does_not_matter(
    dtype: torch.dtype, device: torch.device
):
    module = wrapped("mixtral", r=8, k=2, hybrid_r=3, adapter_dtype=dtype).to(device, dtype)
    x, index, shares = inputs(module, device, dtype)
    absent = (index == module.gate_up_proj.num_experts).all(1)
    trained = [p for p in module.parameters() if p.requires_grad]
    calm = results(module, x, index, shares, trained)
    with torch.no_grad():
        x[absent] = float("nan")
        shares[absent] = float("inf")
    wild = results(module, x, index, shares, trained)
    assert all(torch.equal(one, other) for one, other in zip(calm, wild, strict=True))
    assert not calm[0][absent].any()


@pytest.mark.parametrize("experts_with_bias", [False, True], ids=["no bias", "bias"])
def test_no_token_has_an_expert(experts_with_bias: bool, device: torch.device):
    module = wrapped("mixtral", r=8, k=2).to(device)
    if experts_with_bias:
        base = module.base_layer
        base.has_bias = True
        for name, size in (("gate_up_proj_bias", 96), ("down_proj_bias", 32)):
            base.register_parameter(name, nn.Parameter(torch.randn(4, size, device=device)))
    x = torch.randn(5, 32, device=device, requires_grad=True)
    shares = torch.rand(5, 2, device=device, requires_grad=True)
    index = torch.full((5, 2), 4, device=device)
    trained = [p for p in module.parameters() if p.requires_grad]
    for result in results(module, x, index, shares, trained):
        assert not result.any()
