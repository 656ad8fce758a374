"""The forms of ``k``: an int, a pair (k_out, k_in), and "auto"."""

from __future__ import annotations

import pytest

from gralora.nn import GraLoRALinear


def grid_of(layer):
    """(k_out, k_in), read from the shapes of the factors."""
    return layer.gralora_B["default"].shape[0], layer.gralora_A["default"].shape[0]


def test_int_is_a_square_grid():
    assert grid_of(GraLoRALinear(24, 16, r=8, k=4)) == (4, 4)


def test_pair_is_output_blocks_then_input_blocks():
    assert grid_of(GraLoRALinear(24, 16, r=8, k=(2, 4))) == (2, 4)


def test_pair_may_be_a_list():
    assert grid_of(GraLoRALinear(24, 16, r=8, k=[2, 4])) == (2, 4)


def test_pair_needs_no_common_divisor():
    assert grid_of(GraLoRALinear(24, 15, r=8, k=(5, 2))) == (5, 2)


@pytest.mark.parametrize(
    ("r", "k"),
    [(8, 2), (16, 2), (32, 2), (64, 4), (128, 4), (256, 4)],
    ids=lambda value: str(value),
)
def test_auto_follows_the_rank(r, k):
    assert grid_of(GraLoRALinear(128, 64, r=r, k="auto")) == (k, k)


@pytest.mark.parametrize(
    ("in_features", "out_features", "r", "k"),
    [
        pytest.param(66, 64, 64, 2, id="in_features-not-by-4"),
        pytest.param(64, 66, 64, 2, id="out_features-not-by-4"),
        pytest.param(64, 64, 66, 2, id="rank-not-by-4"),
        pytest.param(63, 64, 32, 1, id="in_features-odd"),
        pytest.param(64, 63, 64, 1, id="out_features-odd"),
        pytest.param(64, 64, 33, 1, id="rank-odd"),
        pytest.param(66, 66, 66, 3, id="three-is-nearest-to-4"),
    ],
)
def test_auto_takes_only_divisors_that_fit(in_features, out_features, r, k):
    assert grid_of(GraLoRALinear(in_features, out_features, r=r, k="auto")) == (k, k)


def test_auto_in_add_adapter_looks_at_its_own_rank():
    layer = GraLoRALinear(64, 64, r=32, k="auto")
    layer.add_adapter("wide", r=64, k="auto")
    assert layer.gralora_A["wide"].shape[0] == 4
