"""Rectangles of ΔW as low-rank products."""

from __future__ import annotations

import pytest
import torch
from loose_layers import SHAPES, dense, random_layer

from gralora.adapters.windows import blocks, scaled, window

PARTS = {
    "the whole": (range(36), range(8)),
    "one block": (range(9), range(4, 8)),
    "parts of blocks": (range(5, 31), range(3, 7)),
    "one number": (range(17, 18), range(7, 8)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("part", PARTS)
def test_product_is_that_part_of_the_weight_difference(shape: str, part: str) -> None:
    layer = random_layer(**SHAPES[shape])
    rows, columns = PARTS[part]
    left, right = window(layer, rows, columns)
    expected = dense(layer)[rows.start : rows.stop, columns.start : columns.stop]
    torch.testing.assert_close(layer.spec.scaling * left @ right, expected)


def test_rank_counts_the_blocks_that_are_met() -> None:
    layer = random_layer(24, 36, r=8, k=4, hybrid_r=3)
    left, right = window(layer, range(8, 10), range(7))
    assert left.shape == (2, 2 * 2 * 2 + 3)
    assert right.shape == (2 * 2 * 2 + 3, 7)


def test_blocks_cover_an_axis_in_order() -> None:
    assert list(blocks(12, 3)) == [range(4), range(4, 8), range(8, 12)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_powers_of_two_keep_the_dtype(dtype: torch.dtype) -> None:
    tensor = torch.tensor([1.5, -3.0, 0.0]).to(dtype)
    result = scaled(tensor, 4.0, who="test")
    assert result.dtype == dtype
    assert result.tolist() == [6.0, -12.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [1 / 3, 2.0**40], ids=["a third", "too large for 16 bits"])
def test_what_16_bits_do_not_hold_becomes_float32(dtype: torch.dtype, factor: float) -> None:
    tensor = torch.tensor([1.25, 7.0]).to(dtype)
    result = scaled(tensor, factor, who="test")
    if dtype == torch.bfloat16 and factor > 1:
        assert result.dtype == dtype
    else:
        assert result.dtype == torch.float32
    assert torch.equal(result, (tensor.double() * factor).to(result.dtype))


def test_products_beyond_float32_are_refused() -> None:
    match = (
        r"^export_lora: up: a scaled factor must stay finite, got a scale of 1e\+30 on numbers up"
    )
    with pytest.raises(ValueError, match=match):
        scaled(torch.tensor([1e10]), 1e30, who="export_lora: up")
