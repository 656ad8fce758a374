"""The alpha that makes PEFT's ``alpha / (r + r0)`` a given scale."""

from __future__ import annotations


def whole(number: float) -> float:
    """The number, as an int where it is one."""
    return int(number) if float(number).is_integer() else number


def bake(scaling: float, rank: int) -> float:
    """The alpha whose quotient by `rank` is nearest to `scaling`, an int where it is whole.

    For about one pair in nine no float hits the scale; the quotient is then off by one rounding.
    """
    return whole(scaling * rank)
