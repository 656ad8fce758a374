"""The dropout masks as random numbers: mean, variance, and independence of places and of calls.

Seeds are fixed, so a bound of five standard deviations either holds always or never.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from gralora.functional import gralora_linear

CALLS, T, N = 400, 24, 136
PROBABILITIES = [0.1, 0.5, 0.8]
DEVIATIONS = 5


@pytest.fixture(params=PROBABILITIES, ids=lambda p: f"p{p}")
def p(request: pytest.FixtureRequest) -> float:
    """The probability of a zero."""
    return float(request.param)


@pytest.fixture
def centred(p: float, device: torch.device) -> Tensor:
    """[CALLS, T, N]: the masks of consecutive calls of `linear`, of mean 0 and variance 1."""
    return _draw(p, device)


@cache
def _draw(p: float, device: torch.device) -> Tensor:
    torch.manual_seed(11)
    eye = torch.eye(N, device=device)
    x = torch.ones(T, N, device=device)
    weight = torch.zeros(N, N, device=device)
    masks = [
        gralora_linear(x, weight, None, eye[None], eye[None], scaling=1.0, dropout_p=p) != 0
        for _ in range(CALLS)
    ]
    kept = torch.stack(masks).double()
    return (kept - (1 - p)) / (p * (1 - p)) ** 0.5


def _bound(samples: int, maxima: int = 1) -> float:
    """What the largest of `maxima` means of so many numbers of variance 1 stays below."""
    return (DEVIATIONS + (0.5 if maxima > 1000 else 0)) * samples**-0.5


def test_mean(centred: Tensor) -> None:
    # p is rounded to 1/65536.
    assert abs(float(centred.mean())) < _bound(centred.numel()) + 2**-16


def test_mean_of_each_place(centred: Tensor) -> None:
    means = centred.mean(0)
    assert float(means.abs().max()) < _bound(CALLS, means.numel())


def test_variance_of_what_is_kept(p: float, device: torch.device) -> None:
    # Of the result for x = 1: kept elements are 1/(1 - p).
    results = _draw(p, device) * (p / (1 - p)) ** 0.5 + 1
    fourth = p * ((1 - p) ** 3 + p**3) / (1 - p) ** 3
    deviation = max(fourth - (p / (1 - p)) ** 2, 1e-9) ** 0.5 * results.numel() ** -0.5
    assert abs(float(results.var()) - p / (1 - p)) < DEVIATIONS * deviation + 2**-14


def test_number_kept_varies_as_that_of_independent_draws_does(centred: Tensor) -> None:
    for of_each in (centred.flatten(1), centred.flatten(1).T):
        totals = of_each.sum(1) * of_each.shape[1] ** -0.5
        assert abs(float(totals.var()) - 1) < DEVIATIONS * (2 / len(totals)) ** 0.5


@pytest.mark.parametrize("lag", [*range(1, 17), 64, N - 1, N, N + 1, 8 * N], ids=lambda n: f"by{n}")
def test_places_do_not_know_of_each_other(centred: Tensor, lag: int) -> None:
    flat = centred.flatten(1)
    products = flat[:, lag:] * flat[:, :-lag]
    assert abs(float(products.mean())) < _bound(products.numel())


def test_lanes_of_a_group_do_not_know_of_each_other(centred: Tensor) -> None:
    groups = centred.flatten(1).view(-1, 8)
    correlations = groups.T @ groups / len(groups) - torch.eye(8, device=groups.device)
    correlations.fill_diagonal_(0)
    assert float(correlations.abs().max()) < _bound(len(groups))


def test_calls_do_not_know_of_each_other(centred: Tensor) -> None:
    flat = centred.flatten(1)
    correlations = flat @ flat.T / flat.shape[1]
    correlations.fill_diagonal_(0)
    assert float(correlations.abs().max()) < _bound(flat.shape[1], CALLS**2)


def test_rows_and_columns_do_not_know_of_each_other(centred: Tensor) -> None:
    for axis in (1, 2):
        lines = centred.movedim(axis, 0).flatten(1)
        correlations = lines @ lines.T / lines.shape[1]
        correlations.fill_diagonal_(0)
        assert float(correlations.abs().max()) < _bound(lines.shape[1], len(lines) ** 2)
