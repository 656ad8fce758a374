"""Grids: how many blocks a layer's input and output are cut into."""

from __future__ import annotations

import math
from typing import Literal

Grid = int | tuple[int, int] | Literal["auto"]

# The paper's rule, r / k**2 near 8, in the ranks people use.
_AUTO_SMALL_K, _AUTO_LARGE_K, _AUTO_LARGE_RANK = 2, 4, 64


def divisors(number: int) -> list[int]:
    """All positive divisors in ascending order."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def _choose(in_features: int, out_features: int, r: int) -> int:
    """The common divisor of both widths and the rank that is nearest to the paper's k."""
    target = _AUTO_SMALL_K if r < _AUTO_LARGE_RANK else _AUTO_LARGE_K
    candidates = divisors(math.gcd(in_features, out_features, r))
    return min(candidates, key=lambda k: (abs(math.log(k / target)), k))


def resolve_grid(
    k: Grid, in_features: int, out_features: int, r: int, *, who: str
) -> tuple[int, int]:
    """Turn `k` into ``(k_out, k_in)`` and check that it fits the layer and the rank.

    Args:
        k: blocks per axis, a pair ``(k_out, k_in)``, or ``"auto"`` for the paper's rule (2 below
            rank 64, 4 from there on) among the grids that fit the layer.
        in_features: ``N``.
        out_features: ``M``.
        r: rank that each output block sees.
        who: opens the error messages.

    Raises:
        TypeError: `k` is of another kind.
        ValueError: a grid that does not divide the layer or the rank.

    """
    if isinstance(k, str):
        if k != "auto":
            raise ValueError(f'{who}: k must be an int, a pair (k_out, k_in) or "auto", got {k!r}')
        chosen = _choose(in_features, out_features, r)
        k_out, k_in = chosen, chosen
    elif isinstance(k, (tuple, list)) and len(k) == 2:
        k_out, k_in = k
    else:
        k_out, k_in = k, k
    for name, value in (("k_out", k_out), ("k_in", k_in)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f'{who}: k must be an int, a pair (k_out, k_in) or "auto", got {k!r}')
        if value < 1:
            raise ValueError(f"{who}: {name} must be at least 1, got {name}={value}")
    for width_name, width, name, value in (
        ("in_features", in_features, "k_in", k_in),
        ("out_features", out_features, "k_out", k_out),
        ("r", r, "k_in", k_in),
    ):
        if width % value != 0:
            accepted = ", ".join(map(str, divisors(width)))
            raise ValueError(
                f"{who}: {width_name} must be divisible by {name}, got {width_name}={width}, "
                f"{name}={value} (divisors: {accepted})"
            )
    return k_out, k_in
