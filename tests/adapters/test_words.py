"""Sizes, grids and ranks in words."""

from __future__ import annotations

import pytest

from gralora.adapters import words
from gralora.nn.spec import AdapterSpec, make_spec

SIZES = {
    0: "0 bytes",
    999: "999 bytes",
    1000: "1.0 kB",
    1234: "1.2 kB",
    999_949: "999.9 kB",
    999_950: "1.0 MB",
    5_300_000: "5.3 MB",
    2**30: "1.1 GB",
    140_000_000_000: "140.0 GB",
    3 * 10**12: "3.0 TB",
    10**16: "10000.0 TB",
}


@pytest.mark.parametrize("count", SIZES)
def test_sizes_have_the_unit_that_fits(count: int) -> None:
    assert words.size(count) == SIZES[count]


def _spec(k: int | tuple[int, int], hybrid_r: int = 0) -> AdapterSpec:
    return make_spec(16, 16, r=8, k=k, alpha=8, hybrid_r=hybrid_r, dropout=0.0, use_rslora=False)


@pytest.mark.parametrize(("k", "expected"), [(4, "4"), ((2, 4), "2 x 4")], ids=str)
def test_grids_are_output_by_input(k: int | tuple[int, int], expected: str) -> None:
    assert words.grid(_spec(k)) == expected


def test_hybrids_have_two_ranks() -> None:
    assert (words.rank(_spec(2)), words.rank(_spec(2, 3))) == ("8", "8 + 3")
