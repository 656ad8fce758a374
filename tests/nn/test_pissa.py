"""Block-wise PiSSA: which factors, what is left of the weight, and what the layer then computes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from gralora import reference
from gralora.nn import GraLoRAConv1D, GraLoRALinear

GRIDS = [1, 2, 4, (2, 4), (4, 2)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def _linear(in_features=64, out_features=48, dtype=torch.float32, device="cpu", seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(in_features, out_features, dtype=dtype, device=device)


def _adapted(linear, **settings):
    return GraLoRALinear.from_linear(linear, **{"r": 8, "init_weights": "pissa", **settings})


def _part(layer, name="default"):
    """What the adapter started with, [M, N] in fp64."""
    factors = (layer.principal_A[name].detach().double(), layer.principal_B[name].detach().double())
    return reference.delta_weight(*factors, scaling=layer.adapters[name].scaling)


@pytest.mark.parametrize("k", GRIDS, ids=str)
def test_every_block_starts_as_its_best_approximation_of_that_rank(k):
    linear = _linear(dtype=torch.float64)
    W = linear.weight.detach().clone()
    layer = _adapted(linear, k=k)
    k_out, k_in = (k, k) if isinstance(k, int) else k
    m, n, s = 48 // k_out, 64 // k_in, 8 // k_in
    part = _part(layer)
    for i in range(k_out):
        for j in range(k_in):
            rows, columns = slice(i * m, (i + 1) * m), slice(j * n, (j + 1) * n)
            U, S, Vh = torch.linalg.svd(W[rows, columns])
            wanted = (U[:, :s] * S[:s]) @ Vh[:s]
            torch.testing.assert_close(part[rows, columns], wanted)


@pytest.mark.parametrize("k", GRIDS, ids=str)
def test_both_factors_share_the_singular_values(k):
    layer = _adapted(_linear(dtype=torch.float64), k=k)
    A, B = layer.gralora_A["default"].detach(), layer.gralora_B["default"].detach()
    k_in, n, _ = A.shape
    k_out, _, m = B.shape
    down = A.reshape(k_in, n, k_out, -1).square().sum(1).transpose(0, 1)
    up = B.reshape(k_out, k_in, -1, m).square().sum(3)
    torch.testing.assert_close(down, up)


@pytest.mark.parametrize("use_rslora", [False, True], ids=["alpha/r", "rslora"])
@pytest.mark.parametrize("hybrid_r", [0, 3], ids=["plain", "hybrid"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", GRIDS, ids=str)
def test_residual_and_part_are_the_weight_up_to_one_rounding(dtype, k, hybrid_r, use_rslora):
    linear = _linear(dtype=dtype)
    W = linear.weight.detach().double().clone()
    layer = _adapted(linear, k=k, hybrid_r=hybrid_r, use_rslora=use_rslora)
    residual = layer.weight.detach().double()
    # One rounding of the residual, and float32 sums of a few terms.
    bound = torch.finfo(dtype).eps * residual.abs() + 16 * torch.finfo(dtype).eps ** 2
    bound += 1e-6 if dtype != torch.float64 else 1e-15
    assert ((residual + _part(layer) - W).abs() <= bound).all()


@pytest.mark.parametrize("k", GRIDS, ids=str)
def test_the_residual_is_smaller_than_the_weight(k):
    linear = _linear()
    norm = linear.weight.detach().norm()
    assert _adapted(linear, k=k).weight.norm() < 0.9 * norm


@pytest.mark.parametrize("hybrid_r", [0, 3], ids=["plain", "hybrid"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", GRIDS, ids=str)
def test_forward_is_unchanged_up_to_the_rounding_of_its_dtype(device, dtype, k, hybrid_r):
    linear = _linear(dtype=dtype, device=device)
    x = torch.randn(7, 64, device=device).to(dtype)
    before = F.linear(x.double(), linear.weight.double(), linear.bias.double())
    alone = (linear(x).double() - before).abs().max().item()
    layer = _adapted(linear, k=k, hybrid_r=hybrid_r)
    after = (layer(x).double() - before).abs().max().item()
    # Two products and a rounded residual in the place of one product.
    size = before.abs().max().item()
    assert after <= 4 * alone + 4 * torch.finfo(dtype).eps * size


def test_one_block_is_what_peft_makes_of_the_same_weight():
    peft = pytest.importorskip("peft")
    linear = _linear()
    twin = _linear()
    layer = _adapted(linear, k=1, alpha=12)
    config = peft.LoraConfig(
        r=8, lora_alpha=12, init_lora_weights="pissa", target_modules=["0"], lora_dropout=0.0
    )
    theirs = peft.get_peft_model(torch.nn.Sequential(twin), config).base_model.model[0]
    product = theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight
    ours = reference.delta_weight(
        layer.gralora_A["default"], layer.gralora_B["default"], scaling=1.0
    )
    torch.testing.assert_close(ours, product, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.weight, theirs.base_layer.weight, rtol=1e-4, atol=1e-6)
    A = layer.gralora_A["default"][0].T.abs()
    torch.testing.assert_close(A, theirs.lora_A["default"].weight.abs(), rtol=1e-3, atol=1e-4)


def test_the_plain_part_of_a_hybrid_starts_as_by_default(kaiming_bound):
    layer = _adapted(_linear(), k=2, hybrid_r=4)
    assert not layer.lora_B["default"].any()
    assert 0 < layer.lora_A["default"].detach().abs().max().item() <= kaiming_bound(64)


@pytest.mark.parametrize("iterations", [0, 4])
def test_random_directions_find_nearly_the_best_part(iterations):
    torch.manual_seed(0)
    decay = torch.logspace(0, -3, 64, dtype=torch.float64)
    Q = [torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64)).Q for _ in range(2)]
    errors = {}
    for way in ("pissa", f"pissa_niter_{iterations}"):
        linear = torch.nn.Linear(64, 64, dtype=torch.float64)
        linear.weight.data = (Q[0] * decay) @ Q[1]
        errors[way] = _adapted(linear, r=16, k=2, init_weights=way).weight.detach().norm().item()
    best, found = errors["pissa"], errors[f"pissa_niter_{iterations}"]
    assert best <= found <= best * (1.001 if iterations else 1.2)


def test_random_directions_leave_the_layer_unchanged_too():
    linear = _linear(dtype=torch.float64)
    x = torch.randn(5, 64, dtype=torch.float64)
    before = linear(x)
    torch.testing.assert_close(_adapted(linear, k=2, init_weights="pissa_niter_1")(x), before)


def test_gradients_are_those_of_the_formula():
    linear = _linear(dtype=torch.float64)
    layer = _adapted(linear, k=(2, 4), hybrid_r=2)
    x = torch.randn(5, 64, dtype=torch.float64)
    names = ("gralora_A", "gralora_B", "lora_A", "lora_B")
    factors = [getattr(layer, name)["default"] for name in names]
    copies = [factor.detach().clone().requires_grad_() for factor in factors]
    y = reference.linear(
        x, layer.weight.detach(), layer.bias.detach(), *copies[:2],
        scaling=layer.adapters["default"].scaling, lora_A=copies[2], lora_B=copies[3],
    )  # fmt: skip
    wanted = torch.autograd.grad(y.square().sum(), copies)
    got = torch.autograd.grad(layer(x).square().sum(), factors)
    for name, one, other in zip(names, got, wanted, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


def test_conv1d_gives_up_the_same_part_of_its_transposed_weight():
    utilities = pytest.importorskip("transformers.pytorch_utils")
    linear = _linear(dtype=torch.float64)
    conv1d = utilities.Conv1D(48, 64).double()
    conv1d.weight.data = linear.weight.detach().T.contiguous()
    twin = GraLoRAConv1D.from_conv1d(conv1d, r=8, k=(2, 4), init_weights="pissa")
    layer = _adapted(linear, k=(2, 4))
    torch.testing.assert_close(twin.weight.T, layer.weight)


def test_the_weight_stays_the_very_same_tensor():
    linear = _linear()
    weight = linear.weight
    assert _adapted(linear, k=2).weight is weight


def test_only_the_trained_factors_require_gradients():
    layer = _adapted(_linear(), k=2)
    trained = {name for name, value in layer.named_parameters() if value.requires_grad}
    assert trained == {"gralora_A.default", "gralora_B.default"}


def test_a_new_layer_with_a_weight_of_its_own_starts_so_too():
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 48)
    torch.manual_seed(0)
    layer = GraLoRALinear(64, 48, r=8, k=2, init_weights="pissa")
    x = torch.randn(3, 64)
    torch.testing.assert_close(layer(x), plain(x))
    assert layer.weight.norm() < 0.95 * plain.weight.norm()


def test_the_scale_is_divided_out_of_the_factors():
    layers = [_adapted(_linear(), k=2, alpha=alpha) for alpha in (4, 64)]
    norms = [layer.gralora_A["default"].detach().norm().item() for layer in layers]
    assert norms[0] / norms[1] == pytest.approx(math.sqrt(64 / 4), rel=1e-5)
