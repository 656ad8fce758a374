"""The oracles themselves: `gralora.reference` against loops, Philox against published vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops_cases import GRIDS, Grid, dense, make_operands
from ops_naive import naive_delta_weight, naive_linear
from ops_philox import keep_mask, philox4x32_10

import gralora.reference

grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


@grids
def test_delta_weight_is_the_sum_of_products_of_single_numbers(grid: Grid) -> None:
    operands = make_operands(grid)
    delta = gralora.reference.delta_weight(
        operands.A,
        operands.B,
        scaling=0.75,
        lora_A=operands.lora_A,
        lora_B=operands.lora_B,
    )
    expected = naive_delta_weight(*operands.factors(), scaling=0.75)
    torch.testing.assert_close(delta, expected, rtol=1e-12, atol=1e-12)


@grids
def test_linear_is_the_sum_of_products_of_single_numbers(grid: Grid) -> None:
    operands = make_operands(grid, (3,))
    result = gralora.reference.linear(
        operands.x,
        operands.weight,
        operands.bias,
        operands.A,
        operands.B,
        scaling=0.75,
        lora_A=operands.lora_A,
        lora_B=operands.lora_B,
    )
    delta = naive_delta_weight(*operands.factors(), scaling=0.75)
    expected = naive_linear(operands.x, operands.weight, operands.bias, delta)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_naive_linear_is_the_dense_layer() -> None:
    operands = make_operands(GRIDS["hybrid_rectangular"], (4,))
    delta = naive_delta_weight(*operands.factors(), scaling=0.75)
    naive = naive_linear(operands.x, operands.weight, operands.bias, delta)
    torch.testing.assert_close(naive, dense(delta, operands), rtol=1e-12, atol=1e-12)


def test_one_block_is_plain_lora() -> None:
    operands = make_operands(GRIDS["lora"])
    assert operands.A is not None
    assert operands.B is not None
    grid = gralora.reference.delta_weight(operands.A, operands.B, scaling=0.75)
    plain = gralora.reference.delta_weight(
        None, None, scaling=0.75, lora_A=operands.A[0].T, lora_B=operands.B[0].T
    )
    torch.testing.assert_close(grid, plain, rtol=1e-12, atol=1e-12)


# The known-answer vectors that Random123 publishes for philox4x32 with ten rounds.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        pytest.param(
            (0, 0, 0, 0),
            (0, 0),
            (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
            id="zeros",
        ),
        pytest.param(
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
            id="ones",
        ),
        pytest.param(
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
            id="digits_of_pi",
        ),
    ],
)
def test_philox_gives_the_published_vectors(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = philox4x32_10(np.array([counter], dtype=np.uint64), key)
    assert tuple(int(word) for word in words[0]) == expected


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.1, 0.5, 0.999999, 1.0])
@pytest.mark.parametrize(
    "state",
    [(0, 0), (1, 2), (-1, -1), (2**62 + 5, 2**40 + 3), (-(2**63), 2**63 - 1)],
    ids=["zeros", "small", "minus_ones", "both_words", "extremes"],
)
def test_dropout_mask_is_that_of_the_independent_generator(
    state: tuple[int, int], p: float
) -> None:
    rng_state = torch.tensor(state, dtype=torch.int64)
    mask = torch.as_tensor(gralora.reference.dropout_mask(rng_state, 5, 13, p))
    assert torch.equal(mask != 0, keep_mask(rng_state, 5, 13, p))
