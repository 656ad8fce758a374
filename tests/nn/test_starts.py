"""Other ways to start: gaussian and orthogonal factors, their sizes, and who draws them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gralora.nn import GraLoRALinear, GraLoRAWrapper

GRIDS = [1, 2, (2, 4), (4, 2)]
WAYS = ["kaiming", "gaussian", "orthogonal", "pissa", "pissa_niter_2"]


def _blocks(layer: GraLoRALinear, k_out: int, k_in: int) -> tuple[Tensor, Tensor]:
    """A [k_out, k_in, n, s] and B [k_out, k_in, s, m] in fp64, cut out one by one."""
    A = layer.gralora_A["default"].detach().double()
    B = layer.gralora_B["default"].detach().double()
    s = A.shape[2] // k_out
    down = [[A[j][:, i * s : (i + 1) * s] for j in range(k_in)] for i in range(k_out)]
    up = [[B[i][j * s : (j + 1) * s] for j in range(k_in)] for i in range(k_out)]
    return torch.stack([torch.stack(row) for row in down]), torch.stack(
        [torch.stack(row) for row in up]
    )


def _pair(k: int | tuple[int, int]) -> tuple[int, int]:
    return (k, k) if isinstance(k, int) else k


@pytest.mark.parametrize("hybrid_r", [0, 3], ids=["plain", "hybrid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("k", GRIDS, ids=str)
def test_fresh_adapter_changes_no_bit(device, dtype, way, k, hybrid_r):
    torch.manual_seed(0)
    layer = GraLoRALinear(
        32, 48, r=16, k=k, hybrid_r=hybrid_r, device=device, dtype=dtype, init_weights=way
    )
    x = torch.randn(5, 32, device=device).to(dtype)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("factor", ["gralora_A", "lora_A"])
def test_gaussian_factors_have_the_reciprocal_of_their_rank_as_deviation(factor):
    torch.manual_seed(0)
    layer = GraLoRALinear(512, 64, r=16, k=2, hybrid_r=16, init_weights="gaussian")
    assert getattr(layer, factor)["default"].detach().std().item() == pytest.approx(1 / 16, rel=0.1)


def test_gaussian_agrees_with_peft_at_one_block():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(512, 64))
    config = peft.LoraConfig(r=16, init_lora_weights="gaussian", target_modules=["0"])
    theirs = peft.get_peft_model(model, config).base_model.model[0].lora_A["default"].weight
    ours = GraLoRALinear(512, 64, r=16, k=1, init_weights="gaussian").gralora_A["default"]
    assert ours.detach().std().item() == pytest.approx(theirs.detach().std().item(), rel=0.05)


@pytest.mark.parametrize("k", GRIDS, ids=str)
def test_orthogonal_blocks_have_orthonormal_columns_of_a_in_their_first_half(k):
    layer = GraLoRALinear(64, 96, r=16, k=k, dtype=torch.float64, init_weights="orthogonal")
    A, _ = _blocks(layer, *_pair(k))
    half = A.shape[-1] // 2
    unit = torch.eye(half, dtype=torch.float64).expand(*A.shape[:2], half, half)
    torch.testing.assert_close(A[..., :half].mT @ A[..., :half], unit)
    assert not A[..., half:].any()


@pytest.mark.parametrize("k", GRIDS, ids=str)
def test_orthogonal_blocks_have_orthonormal_rows_of_b_in_their_second_half(k):
    layer = GraLoRALinear(64, 96, r=16, k=k, dtype=torch.float64, init_weights="orthogonal")
    _, B = _blocks(layer, *_pair(k))
    half = B.shape[-2] // 2
    unit = torch.eye(half, dtype=torch.float64).expand(*B.shape[:2], half, half)
    torch.testing.assert_close(B[..., half:, :] @ B[..., half:, :].mT, unit)
    assert not B[..., :half, :].any()


def test_orthogonal_plain_part_has_orthonormal_halves_too():
    layer = GraLoRALinear(
        64, 96, r=4, k=2, hybrid_r=6, dtype=torch.float64, init_weights="orthogonal"
    )
    unit = torch.eye(3, dtype=torch.float64)
    A, B = layer.lora_A["default"].detach(), layer.lora_B["default"].detach()
    torch.testing.assert_close(A[:3] @ A[:3].T, unit)
    torch.testing.assert_close(B[:, 3:].T @ B[:, 3:], unit)
    assert not A[3:].any()
    assert not B[:, :3].any()


def test_orthogonal_factors_all_get_a_gradient_at_once():
    layer = GraLoRALinear(32, 48, r=8, k=2, init_weights="orthogonal")
    layer(torch.randn(7, 32)).square().sum().backward()
    assert layer.gralora_A["default"].grad.any()
    assert layer.gralora_B["default"].grad.any()


def test_an_odd_rank_gives_a_the_larger_half():
    layer = GraLoRALinear(32, 48, r=6, k=2, init_weights="orthogonal")
    A, B = _blocks(layer, 2, 2)
    assert A[..., :2].abs().sum(2).all()
    assert not A[..., 2:].any()
    assert B[..., 2:, :].abs().sum(3).all()


def test_rank_one_blocks_start_with_one_column_and_zero():
    layer = GraLoRALinear(32, 48, r=2, k=2, init_weights="orthogonal")
    torch.testing.assert_close(
        layer.gralora_A["default"].detach().norm(dim=1), torch.ones(2, 2), check_dtype=False
    )
    assert not layer.gralora_B["default"].any()


def test_ranks_beyond_a_blocks_width_have_orthonormal_rows_instead():
    layer = GraLoRALinear(8, 16, r=32, k=2, dtype=torch.float64, init_weights="orthogonal")
    A, _ = _blocks(layer, 2, 2)
    half = A[..., :8]
    unit = torch.eye(4, dtype=torch.float64).expand(2, 2, 4, 4)
    torch.testing.assert_close(half @ half.mT, unit)


@pytest.mark.parametrize("way", WAYS)
def test_same_seed_gives_the_same_factors(way):
    layers = []
    for _ in range(2):
        torch.manual_seed(7)
        layers.append(GraLoRALinear(16, 8, r=4, k=2, hybrid_r=2, init_weights=way))
    for key, value in layers[0].state_dict().items():
        assert torch.equal(value, layers[1].state_dict()[key]), key


@pytest.mark.parametrize("way", ["kaiming", "gaussian", "orthogonal"])
def test_a_generator_decides_the_factors_and_leaves_the_default_one_alone(way):
    layer = GraLoRALinear(16, 8, r=4, k=2, hybrid_r=2, init_weights=way)
    state = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        layer.reset_adapter("default", generator=torch.Generator().manual_seed(3))
        drawn.append({key: value.clone() for key, value in layer.state_dict().items()})
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in drawn[0].items():
        assert torch.equal(value, drawn[1][key]), key


@pytest.mark.parametrize("way", ["gaussian", "orthogonal"])
def test_added_adapters_start_in_their_own_way(way):
    layer = GraLoRALinear(16, 8, r=4, k=2)
    layer.add_adapter("other", r=4, k=2, init_weights=way)
    assert layer.adapters["other"].init_weights == way
    assert f"other: r=4, k=2, alpha=8, init_weights={way}" in layer.extra_repr()


@pytest.mark.parametrize("way", ["gaussian", "orthogonal"])
def test_meta_layer_becomes_real(way):
    layer = GraLoRALinear(32, 16, r=8, k=2, hybrid_r=2, device="meta", init_weights=way)
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    x = torch.randn(3, 32)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("way", ["gaussian", "orthogonal"])
def test_a_wrapped_layer_starts_without_a_change(way):
    base = torch.nn.Linear(32, 48)
    layer = GraLoRAWrapper(base, r=8, k=2, init_weights=way)
    x = torch.randn(3, 32)
    assert torch.equal(layer(x), base(x))


@pytest.mark.parametrize("value", ["normal", "pissa_niter_", "pissa_niter_-1", "Gaussian"])
def test_an_unknown_way_is_refused_with_those_accepted(value):
    with pytest.raises(ValueError, match=r'must be "kaiming", "gaussian".*N from 0 to 999, got'):
        GraLoRALinear(16, 8, r=4, init_weights=value)


def test_a_way_that_is_no_string_is_refused():
    with pytest.raises(TypeError, match="init_weights must be a str, got True"):
        GraLoRALinear(16, 8, r=4, init_weights=True)
