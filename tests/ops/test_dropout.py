"""The dropout generator: which elements it keeps, and by what it multiplies them."""

from __future__ import annotations

import pytest
import torch
from ops_layouts import LAYOUTS, Layout
from ops_philox import dropout_scale, dropout_threshold, keep_mask, kept
from torch import Tensor

import gralora.reference

STATES = {
    "zeros": (0, 0),
    "small": (1, 2),
    "minus_ones": (-1, -1),
    "both_words": (2**62 + 5, 2**40 + 3),
    "extremes": (-(2**63), 2**63 - 1),
}
states = pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
PROBABILITIES = [0.0, 1e-9, 7.7e-6, 0.1, 0.5, 0.9, 0.99999, 1.0]
DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def _drop(x: Tensor, state: tuple[int, int], p: float) -> Tensor:
    return torch.ops.gralora.dropout(x, torch.tensor(state, device=x.device), p=p)


def _mask(state: tuple[int, int], T: int, N: int, p: float, device: torch.device) -> Tensor:
    return keep_mask(torch.tensor(state), T, N, p).to(device)


@states
@pytest.mark.parametrize("p", PROBABILITIES)
def test_kept_elements_are_those_of_the_independent_generator(
    p: float, state: tuple[int, int], kernel_device: torch.device
) -> None:
    x = torch.ones(9, 37, dtype=torch.float64, device=kernel_device)
    assert torch.equal(_drop(x, state, p) != 0, _mask(state, 9, 37, p, kernel_device))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_kept_elements_are_those_of_the_reference(p: float, kernel_device: torch.device) -> None:
    rng_state = torch.tensor([-12345, 2**35 + 1])
    x = torch.ones(9, 37, dtype=torch.float64, device=kernel_device)
    result = torch.ops.gralora.dropout(x, rng_state.to(kernel_device), p=p)
    mask = torch.as_tensor(gralora.reference.dropout_mask(rng_state, 9, 37, p)) != 0
    assert torch.equal(result.cpu() != 0, mask)


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9])
def test_kept_elements_are_scaled_to_keep_the_mean(p: float, kernel_device: torch.device) -> None:
    x = torch.randn(9, 37, dtype=torch.float64, device=kernel_device)
    result = _drop(x, (5, 6), p)
    mask = _mask((5, 6), 9, 37, p, kernel_device)
    torch.testing.assert_close(result[mask], x[mask] * dropout_scale(p), rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_each_dtype_has_the_same_mask(
    p: float, dtype: torch.dtype, kernel_device: torch.device
) -> None:
    x = torch.randn(9, 37, device=kernel_device).to(dtype)
    mask = _mask((5, 6), 9, 37, p, kernel_device)
    exact = torch.where(mask, x.double() * dropout_scale(p), 0.0)
    result = _drop(x, (5, 6), p)
    assert result.dtype == dtype
    # 16-bit numbers are rounded once, from fp32; fp32 and fp64 have a rounded scale as well.
    roundings = 1.01 if dtype.itemsize == 2 else 2
    half_a_unit = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(result.double(), exact, rtol=roundings * half_a_unit, atol=0)


def test_probability_zero_keeps_every_bit(kernel_device: torch.device) -> None:
    x = torch.randn(9, 37, device=kernel_device)
    assert torch.equal(_drop(x, (5, 6), 0.0), x)


def test_a_probability_below_one_step_of_the_generator_keeps_every_bit(
    kernel_device: torch.device,
) -> None:
    x = torch.randn(9, 37, device=kernel_device)
    assert torch.equal(_drop(x, (5, 6), 1e-9), x)


def test_probability_one_gives_zeros(kernel_device: torch.device) -> None:
    x = torch.randn(9, 37, device=kernel_device)
    assert torch.equal(_drop(x, (5, 6), 1.0), torch.zeros_like(x))


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (3, 5), (2, 3, 5), (1, 8, 9)], ids=str)
def test_elements_are_numbered_in_row_major_order(
    shape: tuple[int, ...], kernel_device: torch.device
) -> None:
    x = torch.ones(shape, dtype=torch.float64, device=kernel_device)
    mask = kept(torch.tensor((5, 6)), 0, x.numel(), 0.5).reshape(shape)
    assert torch.equal(_drop(x, (5, 6), 0.5).cpu() != 0, mask)


@pytest.mark.parametrize("N", [1, 2, 7, 8, 9, 15, 17, 64, 1000])
def test_any_width(N: int, kernel_device: torch.device) -> None:
    x = torch.ones(13, N, dtype=torch.float64, device=kernel_device)
    assert torch.equal(_drop(x, (5, 6), 0.5) != 0, _mask((5, 6), 13, N, 0.5, kernel_device))


@pytest.mark.parametrize("shape", [(0,), (0, 8), (4, 0)], ids=str)
def test_no_elements(shape: tuple[int, ...], kernel_device: torch.device) -> None:
    assert _drop(torch.ones(shape, device=kernel_device), (5, 6), 0.5).shape == shape


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["fp64", "bf16"])
@pytest.mark.parametrize("shape", [(9, 16), (3, 5, 21)], ids=str)
def test_strides_do_not_change_the_mask(
    shape: tuple[int, ...], dtype: torch.dtype, layout: Layout, kernel_device: torch.device
) -> None:
    x = torch.randn(shape, device=kernel_device).to(dtype)
    assert torch.equal(_drop(layout(x), (5, 6), 0.5), _drop(x, (5, 6), 0.5))


def test_an_expanded_input(kernel_device: torch.device) -> None:
    x = torch.randn(1, 21, device=kernel_device).expand(9, 21)
    assert torch.equal(_drop(x, (5, 6), 0.5), _drop(x.contiguous(), (5, 6), 0.5))


def test_the_input_is_not_written(kernel_device: torch.device) -> None:
    x = torch.randn(9, 37, device=kernel_device)
    before = x.clone()
    _drop(x, (5, 6), 0.5)
    assert torch.equal(x, before)


def test_the_gradient_has_the_same_mask(kernel_device: torch.device) -> None:
    x = torch.randn(9, 37, dtype=torch.float64, device=kernel_device, requires_grad=True)
    dy = torch.randn(9, 37, dtype=torch.float64, device=kernel_device)
    (dx,) = torch.autograd.grad(_drop(x, (5, 6), 0.3), x, dy)
    assert torch.equal(dx, _drop(dy, (5, 6), 0.3))


# The statistics of one fixed, large sample: bounds are five standard deviations.
T, N = 512, 1024
SAMPLES = T * N


def _sample(p: float, device: torch.device, state: tuple[int, int] = (2024, 7)) -> Tensor:
    return _drop(torch.ones(T, N, device=device), state, p).double()


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_share_of_dropped_elements_is_p(p: float, kernel_device: torch.device) -> None:
    share = (_sample(p, kernel_device) == 0).double().mean()
    assert abs(share - p) < 5 * (p * (1 - p) / SAMPLES) ** 0.5 + 1 / 65536


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_mean_is_kept(p: float, kernel_device: torch.device) -> None:
    exact_p = dropout_threshold(p) / 65536
    deviation = (exact_p / (1 - exact_p) / SAMPLES) ** 0.5
    assert abs(_sample(p, kernel_device).mean() - 1) < 5 * deviation


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_variance_is_that_of_dropout(p: float, kernel_device: torch.device) -> None:
    exact_p = dropout_threshold(p) / 65536
    expected = exact_p / (1 - exact_p)
    variance = _sample(p, kernel_device).var()
    assert abs(variance / expected - 1) < 0.02


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.reshape(-1), b.reshape(-1)]))[0, 1])


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 5, 6, 7, 8, 16, 64])
def test_columns_are_independent(distance: int, kernel_device: torch.device) -> None:
    mask = _sample(0.5, kernel_device)
    assert abs(_correlation(mask[:, distance:], mask[:, :-distance])) < 5 / SAMPLES**0.5


@pytest.mark.parametrize("distance", [1, 2, 8])
def test_rows_are_independent(distance: int, kernel_device: torch.device) -> None:
    mask = _sample(0.5, kernel_device)
    assert abs(_correlation(mask[distance:], mask[:-distance])) < 5 / (SAMPLES - N * 8) ** 0.5


@pytest.mark.parametrize(
    "other", [(2025, 7), (2024, 8), (2024 + 2**32, 7), (2024, 7 + 2**32)], ids=str
)
def test_another_state_is_an_independent_mask(
    other: tuple[int, int], kernel_device: torch.device
) -> None:
    correlation = _correlation(_sample(0.5, kernel_device), _sample(0.5, kernel_device, other))
    assert abs(correlation) < 5 / SAMPLES**0.5


def test_each_column_is_dropped_as_often_as_the_others(kernel_device: torch.device) -> None:
    dropped = (_sample(0.5, kernel_device) == 0).double().mean(dim=0)
    assert (dropped - 0.5).abs().max() < 5.5 * (0.25 / T) ** 0.5
